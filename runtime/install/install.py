"""Put a bundle into an installation, confirm it, take it back, and say how things stand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from stategate.contract import Bundle
from stategate.contract.arguments import checks_kinds
from stategate.contract.bundle import SLOTS
from stategate.contract.durable import make_folder
from stategate.contract.errors import InstallError, StategateError
from stategate.contract.failures import failures
from stategate.contract.staging import remove
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.check.golden import replay
from stategate.runtime.engines.engine import EngineChoice
from stategate.runtime.install.decide import Event, Phase, decide, runs, target
from stategate.runtime.install.memories import ledger_in, move_account
from stategate.runtime.install.record import Installed, InstallFolder, Trial
from stategate.runtime.install.unpack import check_machine, check_replaces, unpack
from stategate.runtime.trust.accepted import accepted
from stategate.runtime.trust.policy import Trust

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slot:
    """What lies in a slot: the model's name, its digest, its release; empty names for nothing."""

    name: str
    model: str
    digest: str
    release: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class InstallStatus:
    """How an installation stands.

    Attributes:
        folder: Where it is.
        phase: ``empty``, ``steady``, ``unpacking``, ``staged`` (waits for its shadow run) or
            ``trial`` (acts, and is watched).
        runs: Slot whose bundle runs; None where nothing is installed.
        slots: Both of them.
        can_go_back: Whether there is a bundle to go back to.
        starts: Starts on trial that nobody has confirmed.
        floor: The highest release that was confirmed: a lower one is refused.
        trial: What an update must keep to.
        why: What led to this.
        ledger: What all memories of the installation have counted, as far as it was saved.
    """

    folder: Path
    phase: str
    runs: str | None
    slots: tuple[Slot, Slot]
    can_go_back: bool
    starts: int
    floor: int
    trial: Trial
    why: str
    ledger: Ledger


@checks_kinds
def install(
    bundle: str | Path | Bundle,
    into: str | Path,
    *,
    trial: Trial | None = None,
    older: str | None = None,
    engine: EngineChoice = "auto",
    trust: Trust | None = None,
) -> InstallStatus:
    """Put a bundle beside the one that runs; the running one is not touched.

    It is checked, copied into the free slot, and stepped there through its golden episode. The
    first bundle of a folder runs at once. Another one waits: whoever has the folder open with
    `Installation.open` steps it as a shadow, lets it act, and confirms it or takes it back.

        stategate.install("build/policy-2", into="/var/lib/robot")

    Args:
        bundle: The bundle, or its folder.
        into: Folder of the installation; made if it is not there.
        trial: What the update must keep to.
        older: ``"WHO: WHY"`` installs a release below the highest that was confirmed here.
        engine: What steps the golden episode.
        trust: Whose signature it must have; see `Session.open`, where it is asked for again.

    Raises:
        TrustError: Nobody who is trusted signed it.
        InstallError: It is older, for another machine or another loop, a trial is going on,
            another process installs, or it does not behave as promised.
        BundleError: It is no bundle, or a file was altered.
        OSError: The folder cannot be written, or is full; what runs goes on.
    """
    opened = Bundle.open(bundle)
    accepted(opened, trust)
    check_machine(opened.manifest)
    if opened.manifest.standing == "candidate":
        raise InstallError(
            "the bundle is a candidate that nobody has judged",
            found=opened.path,
            remedy="judge it first: stategate drift FLOAT BUNDLE --seal SEALED",
        )
    who, _, why_older = (older or "").partition(":")
    if older is not None and not (who.strip() and why_older.strip()):
        raise InstallError(
            "an older release needs somebody who wants it, and why",
            found=older,
            expected='older="WHO: WHY"',
        )
    folder = InstallFolder(into)
    make_folder(folder.path)
    with folder.exclusive("installing", "let it end, then install again"):
        record = _begun(folder, opened, trial or Trial(), older)
        slot = target(record.slots)
        try:
            unpack(opened, folder.slot(slot))
            _step_golden(folder.slot(slot), engine, trust)
        except BaseException as problem:
            reason = problem.reason if isinstance(problem, StategateError) else str(problem)
            _give_up(folder, slot, f"not installed: {reason or type(problem).__name__}")
            raise
        first = record.slots.phase is Phase.EMPTY
        why = "the first bundle" if first else "unpacked, and waits for its shadow run"
        words = f"; older, for {older}" if older is not None else ""
        digests = _with(record.digests, slot, opened.digest)
        release = opened.manifest.release
        whole = folder.change(
            Event.UNPACKED, why + words, release=release, only_at=record.number, digests=digests
        )
        if whole is None:  # by `go_back`, while it was unpacked
            raise InstallError("the update was taken back meanwhile", found=folder.read().why)
    return status(folder.path)


def _begun(folder: InstallFolder, bundle: Bundle, trial: Trial, older: str | None) -> Installed:
    """The record once the other slot may be written."""
    record = folder.read()
    running = runs(record.slots)
    # Asked before anything is moved: on trial the free slot is the one that runs.
    release, is_allowed = bundle.manifest.release, older is not None
    if decide(record.slots, Event.INSTALL, release, is_allowed) is None:
        raise _refusal(folder, record, bundle)
    if running is not None:
        if record.digests[running] == bundle.digest:
            raise InstallError("this bundle runs already", found=bundle.digest[:12])
        check_replaces(bundle.manifest, Bundle.open(folder.slot(running)).manifest)
    slot = target(record.slots)
    retired, memories = record.retired, record.memories
    if record.digests[slot]:
        retired = _retire(folder, record, slot)
        memories = _with(memories, slot, max(memories) + 1)
    elif memories == (0, 0):
        memories = (1, 2)
    # Nothing of the record's may have changed since: another slot would be the free one then.
    begun = folder.change(
        Event.INSTALL,
        f"unpacking {bundle.manifest.model.name}",
        release=release,
        older_allowed=is_allowed,
        only_at=record.number,
        digests=_with(record.digests, slot, ""),
        memories=memories,
        retired=retired,
        trial=trial,
    )
    if begun is None:
        raise InstallError(
            "the installation changed meanwhile",
            found=folder.read().why,
            remedy="install the bundle again; nothing was changed",
        )
    if memories != record.memories and record.memories[slot]:
        remove(folder.memory(record, slot))
    return begun


def _refusal(folder: InstallFolder, record: Installed, bundle: Bundle) -> InstallError:
    if record.slots.phase is Phase.TRIAL:
        return InstallError(
            "an update is on trial here",
            found=record.why,
            remedy=f"first: stategate install confirm {folder.quoted}, or "
            f"stategate install go-back {folder.quoted}",
        )
    return InstallError(
        "the bundle is older than one that was confirmed here",
        found=f"release {bundle.manifest.release}",
        expected=f"release {record.slots.floor} or a later one",
        remedy='--older "WHO: WHY" installs it all the same',
    )


def _retire(folder: InstallFolder, record: Installed, slot: int) -> Ledger:
    """What was counted in a slot whose memory goes, and in all before it; budgets are kept."""
    move_account(folder.memory(record, 1 - slot), [folder.memory(record, slot)])
    try:
        manifest = Bundle.open(folder.slot(slot)).manifest
    except StategateError:
        return record.retired
    counted = ledger_in(folder.memory(record, slot), manifest).after(record.retired)
    # Counters by name go: the names are those of a bundle that nobody has any more.
    return replace(counted, gate_openings={}, state_bytes_written={})


def _step_golden(place: Path, engine: EngineChoice, trust: Trust | None) -> None:
    """Refuse a bundle that does not do here what its golden episode says."""
    replayed = replay(place, engine=engine, trust=trust)
    if replayed is None or not replayed.passed:
        raise InstallError(
            "the bundle does not behave on this machine as it promises",
            found="no golden episode" if replayed is None else replayed.summary,
            expected="its golden answers",
            remedy="copy it again, or try another --engine; what runs goes on",
        )


def _give_up(folder: InstallFolder, slot: int, why: str) -> None:
    """Note that the slot is of no use; where even that fails, it stays one that nobody runs."""
    try:
        folder.change(Event.REFUSED, why)
    except failures(OSError, InstallError):
        pass
    remove(folder.slot(slot))


def _with(pair: tuple[T, T], slot: int, value: T) -> tuple[T, T]:
    return (value, pair[1]) if slot == 0 else (pair[0], value)


def confirm(folder: str | Path) -> InstallStatus:
    """Let a bundle on trial stay; the one before it is kept for `go_back`.

    Raises:
        InstallError: Nothing is on trial.
    """
    place = InstallFolder(folder)
    if place.change(Event.CONFIRMED, "confirmed by a person") is None:
        raise _nothing_to(place, "confirm", "a bundle on trial")
    return status(folder)


def go_back(folder: str | Path) -> InstallStatus:
    """Run the bundle from before; an update that waits or is on trial is refused.

    Whoever has the folder open changes over within 32 steps.

    Raises:
        InstallError: There is none.
    """
    place = InstallFolder(folder)
    if place.change(Event.GO_BACK, "taken back by a person") is None:
        raise _nothing_to(place, "go back to", "an update, or the bundle before it")
    return status(folder)


def _nothing_to(folder: InstallFolder, verb: str, expected: str) -> InstallError:
    record = folder.read()
    return InstallError(
        f"there is nothing to {verb}",
        found=f"{record.slots.phase.name.lower()}: {record.why or 'nothing was ever installed'}",
        expected=expected,
        remedy=f"stategate install status {folder.quoted}",
    )


def status(folder: str | Path) -> InstallStatus:
    """How an installation stands; every byte of both slots is checked.

    Raises:
        InstallError: There is no such folder, or its record cannot be read.
    """
    place = InstallFolder(folder)
    place.check()
    record = place.read()
    slots, ledger = [], record.retired
    for number, name in enumerate(SLOTS):
        digest, release = record.digests[number], record.slots.releases[number]
        if not digest:
            slots.append(Slot(name, "", "", 0))
            continue
        try:
            bundle = Bundle.open(place.slot(number))
        except StategateError as problem:
            slots.append(Slot(name, "", digest, release, problem.reason))
            continue
        same = bundle.digest == digest
        problem_words = None if same else f"another bundle: {bundle.digest[:12]}"
        slots.append(Slot(name, bundle.manifest.model.name, digest, release, problem_words))
        ledger = ledger_in(place.memory(record, number), bundle.manifest).after(ledger)
    running = runs(record.slots)
    return InstallStatus(
        folder=place.path,
        phase=record.slots.phase.name.lower(),
        runs=None if running is None else SLOTS[running],
        slots=(slots[0], slots[1]),
        can_go_back=record.slots.has_back or record.slots.phase is Phase.TRIAL,
        starts=record.slots.starts,
        floor=record.slots.floor,
        trial=record.trial,
        why=record.why,
        ledger=ledger,
    )
