"""``stategate fleet``: what many robots brought home, in one table, and who needs a look."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.cli.options import (
    BUNDLE,
    FILE,
    FOLDER,
    POSITIVE,
    cluster_option,
    option,
    out_option,
    verb,
)
from stategate.cli.show import leave_unless, show
from stategate.contract.durable import write_whole

folders_argument = click.argument("folders", nargs=-1, required=True, type=BUNDLE)


@verb()
@folders_argument
@out_option("Folder of the fleet.", FOLDER)
@click.option("--bundle", "bundles", multiple=True, type=BUNDLE, help="That robots step; repeat.")
@cluster_option
def collect(
    folders: tuple[Path, ...],
    out: Path,
    bundles: tuple[Path, ...],
    cluster: str | None,
) -> None:
    """Read what robots brought home in FOLDERS into one folder of parquet files.

    Each of FOLDERS is a robot's, or holds a folder for each robot: installations, snapshots, black
    boxes, lines of metrics. Given again, it writes what is new; a folder that is collected twice
    counts once.

    \b
    Examples:
      stategate fleet collect robots/ --bundle build/policy --out build/fleet
      stategate fleet collect /mnt/monday /mnt/tuesday --cluster local --out build/fleet
    """
    from stategate.bench.fleet.collect import collect

    result = collect(folders, out, bundles=bundles, cluster=cluster)
    # A wrong folder shows in the names: one of "memory" is no robot.
    names = ", ".join([*result.robots[:3], *(["..."] if len(result.robots) > 3 else [])])
    count = f"{len(result.robots):,} robot{'s' * (len(result.robots) != 1)} ({names})"
    texts = [f"{count}, {len(result.new):,} of them new: {out}"]
    show(result, [*texts, *(("unreadable", text) for text in result.problems)])


@verb("show")
@click.argument("folder", type=BUNDLE)
@option("--storage", help="Medium of every robot, such as emmc-16gb; that of its bundle's target.")
@option("--years", type=POSITIVE, default=5.0, help="A flash that ends sooner is named.")
@out_option("A page (.html).", FILE, required=False)
def show_command(folder: Path, storage: str | None, years: float, out: Path | None) -> None:
    """Say which robots of FOLDER write too much, wear out their flash, or drift.

    Exits with 1 where a robot needs a look, or all robots of a bundle together.

    \b
    Examples:
      stategate fleet show build/fleet --storage emmc-16gb
      stategate fleet show build/fleet --years 7 --out build/fleet.html
    """
    from stategate.bench.fleet import page
    from stategate.bench.fleet.judge import judge
    from stategate.targets import load_storage

    medium = load_storage(storage) if storage is not None else None
    report = judge(folder, storage=medium, years=years)
    if out is not None:
        write_whole(out, page.html(report, f"Fleet {folder.resolve().name}").encode())
    pages = [("page", str(out))] if out is not None else []
    show(page.as_json(report), [*page.lines(report), *pages])
    leave_unless(not report.findings and not report.together)


@verb("episodes")
@folders_argument
@click.option("--bundle", type=BUNDLE, required=True, help="That the black boxes recorded.")
@out_option("Folder of the episodes.", FOLDER)
def episodes_command(folders: tuple[Path, ...], bundle: Path, out: Path) -> None:
    """Write what the black boxes in FOLDERS recorded as episodes, to calibrate on.

    \b
    Examples:
      stategate fleet episodes robots/ --bundle build/policy --out build/met
      stategate calibrate my.py:policy --episode build/met --write-rate 0.1 --out c.json
    """
    from stategate.bench.fleet.episodes import fleet_episodes

    result = fleet_episodes(folders, bundle, out)
    text = f"{len(result.files):,} episodes, {result.steps:,} steps: {out}"
    show(result, [text, *(("unreadable", problem) for problem in result.problems)])
