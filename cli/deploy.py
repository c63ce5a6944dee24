"""``stategate deploy``: a bundle on another machine, over ssh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import stategate
from stategate.bench.fleet.deploy import Deployed
from stategate.cli.options import (
    FOLDER,
    bundle_argument,
    engine_option,
    flag,
    option,
    out_option,
    trust_option,
    verb,
)
from stategate.cli.show import Line, show
from stategate.contract.reading import printable


@verb()
@click.argument("host")
@bundle_argument
@option("--into", default="stategate", help="Folder of the installation there.")
@option("--ssh", default="ssh", help="The program and its options, such as 'ssh -p 2222'.")
@option("--command", help="How stategate is called there; usual places if left out.")
@option("--wheels", type=FOLDER, help="Wheels to install stategate from, where it is not there.")
@flag("--accept-code", "Accept the bundle's native code there, once and for good.")
@trust_option
@engine_option
@flag("--no-bench", "Do not measure there.")
@out_option("Folder for what comes back.", FOLDER, required=False)
def deploy(host: str, bundle: Path, no_bench: bool, out: Path | None, **options: Any) -> None:
    """Put BUNDLE on HOST over ssh: look, copy, install, verify and measure there.

    HOST is a name that ssh knows; keys and ports are those of ~/.ssh/config. What runs there goes
    on; an update waits beside it as after stategate install. Where the line drops nothing is
    half done, and the same command goes on.

    \b
    Examples:
      stategate fleet deploy pi@robot-7.local build/policy --into /var/lib/robot
      stategate deploy robot-7 build/policy --wheels dist --out build/robot-7
    """
    result = stategate.deploy(host, bundle, measure=not no_bench, out=out, **options)
    show(result, _lines(result, out))


def _lines(result: Deployed, out: Path | None) -> Iterator[Line]:
    yield "host", printable(f"{result.host}: {result.machine}, {result.system}")
    yield "there", printable(f"stategate {result.stategate} on Python {result.python}")
    yield "installed", f"{result.folder}/{result.slot}, {result.digest[:12]}, {result.phase}"
    yield "verified", result.verified
    if result.bench is not None:
        for subject in result.bench.subjects:
            times = subject.times
            yield "step", f"{times.p50_us:.1f} us median, {times.max_us:.1f} us longest"
    for text in result.notes:
        yield "note", printable(text, 1000)
    if out is not None:
        yield "report", out
