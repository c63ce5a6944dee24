"""``stategate report``: runs, bundles and results as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stategate.cli.options import (
    ANY_PATH,
    EXISTING,
    FILE,
    engine_option,
    episode_option,
    option,
    out_option,
    steps_option,
    trust_option,
    verb,
)
from stategate.cli.run import golden
from stategate.cli.show import show_paths
from stategate.common.page import Part, Verdict
from stategate.common.page import report as page_of
from stategate.contract import Bundle, load_episode
from stategate.contract.durable import write_whole
from stategate.contract.errors import EpisodeError
from stategate.contract.reading import read_bounded
from stategate.runtime.keep.records import MAGIC
from stategate.runtime.session import Session

_RUN, _IS_ALIVE = "Run of", 'id="live"'


@verb()
@click.argument("what", nargs=-1, required=True, type=EXISTING)
@out_option("The page, a .html file.", FILE)
@option("--bundle", type=ANY_PATH, help="The bundle that was recorded, of a black box.")
@episode_option("; a bundle's golden episode if left out.")
@steps_option("Of a bundle; default: the episode.", None, click.IntRange(1, 1_000_000))
@option("--title", help="Heading; made of the results if left out.")
@engine_option
@trust_option
def report(
    what: tuple[Path, ...],
    out: Path,
    bundle: Path | None,
    title: str | None,
    **more: Any,
) -> None:
    """Draw WHAT as one page, verdicts first; several results stand on it together.

    WHAT is a bundle, which is stepped through its golden episode; a black box, with --bundle; or
    drift.json, bench.json and ledger.json of `drift`, `bench` and `run`, or their folders. The page
    is one file, reaches for nothing on the network, and shows steps as `watch` does.

    \b
    Examples:
      stategate report build/drift/*/drift.json --out candidates.html
      stategate report robot.rec --bundle build/aura --out run.html
    """
    parts = [_part(path, bundle, **more) for path in what]
    if sum(part.title.startswith(_RUN) and _IS_ALIVE in part.body[0] for part in parts) > 1:
        raise click.UsageError("one run is shown alive on a page: draw each run on its own page.")
    heading = title or (parts[0].title if len(parts) == 1 else f"{len(parts)} results")
    write_whole(out, page_of(heading, parts).encode())
    show_paths([out])


def _part(path: Path, bundle: Path | None, **more: Any) -> Part:
    if path.is_dir() and not (path / "manifest.json").exists():
        results = [path / name for name in _RECORDS if (path / name).exists()]
        if not results:
            raise EpisodeError(
                f"{path} holds nothing that a page could be drawn of",
                expected=f"a bundle, a black box, or a folder with {', '.join(_RECORDS)}",
            )
        path = results[0]
    if path.is_dir():
        return _of_bundle(path, **more)
    if path.name in _RECORDS:
        return _RECORDS[path.name](path)
    if path.suffix == ".json":
        raise EpisodeError(
            f"{path.name} is no result by its name", expected=", ".join(_RECORDS), found=path
        )
    with path.open("rb") as file:
        if not file.read(len(MAGIC)).startswith(MAGIC):
            raise EpisodeError(
                f"{path.name} is nothing that a page could be drawn of",
                expected=f"a bundle, a black box, {', '.join(_RECORDS)}",
            )
    from stategate.cli.watch import recorded

    source = recorded(path, bundle, more["engine"], None, None)
    try:
        return _alive(f"Run of {source.manifest.model.name}", source.page_data())
    finally:
        source.close()


def _of_bundle(
    path: Path, episode: Path | None, steps: int | None, engine: str, trust: Path | None
) -> Part:
    from stategate.bench.live.stepped import stepped_data

    opened = Bundle.open(path)
    inputs = load_episode(episode, steps) if episode else golden(opened)
    with Session.open(opened, engine=engine, trust=trust) as session:
        source = f"{path.name}, {episode.name if episode else 'golden episode'}"
        rate = {"rate_hz": inputs.rate_hz} if inputs.rate_hz else {}
        data = stepped_data(session, inputs, steps or inputs.steps, source=source, **rate)
    return _alive(f"Run of {opened.manifest.model.name}", data)


def _alive(title: str, data: dict[str, Any]) -> Part:
    """A run as the live page shows it."""
    from stategate.runtime.watch.page import part_with
    from stategate.runtime.watch.server import encoded

    counts = data["status"]["ledger"]
    passed = not (counts["faults"] or data["status"].get("problem"))
    words = f"{counts['steps']:,} steps, {counts['writes']:,} writes, {counts['faults']:,} faults"
    words += f", {data['about']['state_bytes']:,} bytes of state all the while"
    verdict = Verdict(data["about"]["model"], passed, words)
    return Part(title, [verdict], [part_with(encoded(data))])


def _of_drift(path: Path) -> Part:
    from stategate.calibration.drift.page import part
    from stategate.calibration.drift.record import DriftReport
    from stategate.contract.errors import ResultError
    from stategate.contract.records import load_record

    return part(load_record(path, DriftReport, ResultError, "the drift report"), path.parent.name)


def _of_bench(path: Path) -> Part:
    from stategate.bench.record import read_result
    from stategate.bench.report.page import part

    return part(read_result(path))


def _of_run(path: Path) -> Part:
    import msgspec

    from stategate.cli.run import table as lines_of
    from stategate.common.page import table
    from stategate.contract.failures import failures
    from stategate.runtime.base.ledger import Ledger
    from stategate.runtime.episodes.run import RunResult

    try:
        record = msgspec.json.decode(read_bounded(path))
        ledger = msgspec.convert(record, Ledger)
        result = msgspec.convert(record | {"ledger": record}, RunResult)
    except failures(OSError, msgspec.MsgspecError, TypeError) as problem:
        raise EpisodeError(
            "this is no ledger of a run",
            found=f"{path}: {problem}",
            remedy="stategate run BUNDLE --out DIR",
        ) from problem
    words = f"{ledger.steps:,} steps, {ledger.writes:,} writes, {ledger.faults:,} faults"
    facts = [(str(line[0]), str(line[1])) for line in lines_of(result)]
    verdict = Verdict(result.model, ledger.faults == 0, words)
    return Part(f"Run of {result.model}", [verdict], [table((), facts, "facts")])


_RECORDS: dict[str, Callable[[Path], Part]] = {
    "drift.json": _of_drift,
    "bench.json": _of_bench,
    "ledger.json": _of_run,
}
