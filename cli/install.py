"""``stategate install``: put a bundle beside the one that runs, and say what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from stategate.cli.options import (
    COUNT,
    FOLDER,
    INDEX,
    PRICE,
    SHARE,
    Verb,
    bundle_verb,
    by_name,
    engine_option,
    flag,
    option,
    repeated,
    trust_option,
    verb,
)
from stategate.cli.show import Line, show
from stategate.contract.reading import printable
from stategate.runtime.install.install import (
    InstallStatus,
    confirm,
    go_back,
    install,
    status,
)
from stategate.runtime.install.record import Trial
from stategate.runtime.install.release import release

_TRIAL = Trial()
folder_argument = click.argument("folder", type=FOLDER)


def _by_state(
    name: str, form: str, text: str, read: Callable[[str], Any], *names: str
) -> Callable[[Verb], Verb]:
    return repeated(
        name, form, f"{text}; repeat.", *names, read=lambda texts: by_name(texts, name, read, form)
    )


@bundle_verb()
@option("--into", type=FOLDER, required=True, help="Folder of the installation; made if missing.")
@option("--shadow-steps", type=COUNT, default=_TRIAL.shadow_steps, help="Steps before it acts.")
@option(
    "--difference",
    type=PRICE,
    default=_TRIAL.difference,
    help="Largest difference of an output from the running bundle's, in units of the largest "
    "magnitude of that.",
)
@option("--steps", type=COUNT, default=_TRIAL.steps, help="Steps on trial until it is confirmed.")
@option("--faults", type=INDEX, default=_TRIAL.faults, help="Steps that may fail on trial.")
@option("--late", type=SHARE, default=_TRIAL.late, help="Share of steps that may miss a deadline.")
@option(
    "--write-rate",
    type=SHARE,
    help="Share of steps that may write on trial; twice that of the running bundle, and 0.01, if "
    "left out.",
)
@flag("--by-hand", "Only `install confirm` ends the trial.")
@option("--older", metavar="WHO: WHY", help="Install a release below the highest confirmed one.")
@trust_option
@engine_option
def bundle(bundle: Path, into: Path, **options: Any) -> None:
    """Check BUNDLE, copy it into the free slot, and replay its golden episode there.

    The first bundle of a folder runs at once. An update waits there: the program that has the
    folder open steps it as a shadow, lets it act, watches it, and confirms it or goes back.

    \b
    Examples:
      stategate install bundle build/policy --into /var/lib/robot
      stategate install build/policy-2 --into /var/lib/robot --by-hand
    """
    trial = Trial(**{name: options.pop(name) for name in Trial.__struct_fields__})
    _show(install(bundle, into, trial=trial, **options))


@verb("confirm")
@folder_argument
def confirm_command(folder: Path) -> None:
    """Let the bundle on trial in FOLDER stay.

    \b
    Example:
      stategate install confirm /var/lib/robot
    """
    _show(confirm(folder))


@verb("go-back")
@folder_argument
def go_back_command(folder: Path) -> None:
    """Refuse the update in FOLDER, or run the bundle from before the last one.

    The program that has the folder open changes over within 32 steps.

    \b
    Example:
      stategate install go-back /var/lib/robot
    """
    _show(go_back(folder))


@verb("status")
@folder_argument
def status_command(folder: Path) -> None:
    """Say which bundle of FOLDER runs, how an update stands, and why.

    \b
    Example:
      stategate install status /var/lib/robot
    """
    _show(status(folder))


@bundle_verb("release")
@option("--number", type=INDEX, required=True, help="A later release has a higher one.")
@option("--from", "older", type=FOLDER, help="Bundle whose memory this one may go on with.")
@_by_state("--state", "STATE=OLDER", "A state, and its name in the older bundle", str, "states")
@_by_state("--fill", "STATE=NUMBER", "What new elements of a state hold", float)
@repeated("--crop", "STATE", "A state that takes less than the older one had; repeat.")
@repeated("--drop", "OLDER", "A state of the older bundle that is left behind; repeat.")
def release_command(bundle: Path, number: int, **options: Any) -> None:
    """Write BUNDLE again with a release number, and with how an older memory becomes its own.

    Do so before you sign it: its digest changes.

    \b
    Examples:
      stategate install release build/policy-2 --number 2
      stategate install release build/policy-2 --number 2 --from build/policy --state h=hidden
    """
    written = release(bundle, number, **options)
    record = {"path": str(written.path), "digest": written.digest, "release": number}
    show(record, [f"{written.path}: release {number}, digest {written.digest[:12]}"])


def _show(result: InstallStatus) -> None:
    record = msgspec.to_builtins(result, enc_hook=str)
    show(record, _lines(result))


def _lines(result: InstallStatus) -> Iterator[Line]:
    yield "folder", result.folder
    yield "phase", f"{result.phase}: {printable(result.why, 1000)}" if result.why else result.phase
    for slot in result.slots:
        if not slot.digest:
            yield f"slot {slot.name}", "empty"
            continue
        waits = "waits" if result.can_go_back or result.phase == "staged" else "not used"
        role = "runs" if slot.name == result.runs else waits
        text = f"{role}, {printable(slot.model)} {slot.digest[:12]}, release {slot.release}"
        yield f"slot {slot.name}", text if slot.problem is None else f"DAMAGED: {slot.problem}"
    yield "go back", "possible" if result.can_go_back else "there is no bundle to go back to"
    yield "oldest", f"release {result.floor}"
    ledger = result.ledger
    yield "saved", f"{ledger.steps:,} steps, {ledger.writes:,} writes"
    yield "persisted", f"{ledger.persisted_bytes:,} bytes"
