"""What becomes of a memory in an update: handed over where it means the same, else kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stategate.contract import Manifest, ObservationContract
from stategate.contract.durable import make_folder, move_into_place, sync_folder
from stategate.contract.errors import SnapshotError, StategateError
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.keep.journal import read_journal
from stategate.runtime.keep.snapshot import Codec, memory_identity
from stategate.runtime.keep.store import GoodSnapshot, newest_in
from stategate.runtime.session import Session

_ACCOUNT = "account"


def states_for_update(
    older: Manifest, states: Mapping[str, Array], session: Session
) -> tuple[Mapping[str, Array] | None, str]:
    """The states of another bundle as those that a fresh session may begin with.

    Equal shapes are not enough: the same numbers mean something else to other weights. So the two
    memories must be one by their identity (weights, gates, and the states' names, shapes, dtypes
    and layouts), or the bundle says how it makes its own of the older one.

    Args:
        older: Whose states they are.
        states: By name.
        session: Of the bundle that takes them, at its initial states.

    Returns:
        States, None where the session begins at its initial ones; and why, in words.
    """
    manifest, identity = session.manifest, memory_identity(older)
    if (manifest.observation or ObservationContract()).resets.on_switch:
        return None, "the memory begins anew: its reset rule on_switch says so"
    if identity == memory_identity(manifest):
        same = manifest.step_graph.file.sha256 == older.step_graph.file.sha256
        other = "" if same else ", of another graph"
        return states, f"the memory goes on: its schema is the same{other}"
    for migration in manifest.migrations:
        if migration.memory_sha256 == identity:
            initial = {spec.name: session.state(spec.name) for spec in manifest.states}
            try:
                migrated = migration.apply(states, manifest.states, initial)
            except StategateError as problem:
                return None, f"the memory begins anew: {problem.reason}"
            return migrated, "the memory goes on, as the bundle's migration says"
    why = "another schema, and no migration from it"
    return None, f"the memory begins anew: {why}; the older one is kept for the way back"


def ledger_in(folder: Path, manifest: Manifest) -> Ledger:
    """What a snapshot folder counted; zeros where nothing of it can be read."""
    newest = _newest(folder, manifest)
    if newest is None:
        return Ledger()
    return read_journal(folder, newest).newest_ledger(newest.snapshot.header.ledger)


def saved_states(folder: Path, manifest: Manifest) -> dict[str, Array] | None:
    """The states of the newest snapshot in a folder; None where nothing can be taken back."""
    newest = _newest(folder, manifest)
    return newest.snapshot.states if newest is not None else None


def _newest(folder: Path, manifest: Manifest) -> GoodSnapshot | None:
    try:
        return newest_in(folder, Codec(manifest))
    except SnapshotError:
        return None


def move_account(folder: Path, others: list[Path]) -> None:
    """Take what is left of the budgets to the snapshot folder that is about to be used.

    There is one account: budgets belong to the flash, and no update fills them. Called while no
    session holds any of the folders.
    """
    make_folder(folder)
    if (folder / _ACCOUNT).exists():
        return
    for other in others:
        try:
            move_into_place(other / _ACCOUNT, folder / _ACCOUNT)
        except FileNotFoundError:
            continue
        except failures(OSError) as problem:
            raise SnapshotError(
                "the account of the budgets cannot be moved",
                found=f"{other}: {problem}",
                remedy="make the folder writable; nothing was changed",
            ) from problem
        sync_folder(other)
        return
