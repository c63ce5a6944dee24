"""Robots with planted faults: who is found, and who is accused without a reason.

The faults were made stronger, and the rule for saves was chosen, after a look at robots of this
same simulator: what it finds says that the chain works, and not what a real fleet would show.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np

from stategate.bench.fleet.collect import collect
from stategate.bench.fleet.episodes import fleet_episodes
from stategate.bench.fleet.judge import FALSE_ALARM, judge, outliers
from stategate.bench.fleet.page import html
from stategate.bench.fleet.table import PARTS
from stategate.calibration.thresholds.curve import calibrate
from stategate.cli.options import BUNDLE, COUNT, FOLDER, out_option
from stategate.common.console import progress
from stategate.contract import canonical_json
from stategate.contract.durable import write_whole
from stategate.runtime import BlackBox, Session, SnapshotPolicy
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.watch.telemetry import JsonLines
from stategate.targets import load_storage

# Planted by number of the robot: so many of a thousand, and what they must be named for.
FAULTS = {"writes": 10, "drift of gate": 10, "saves": 5, "unreadable": 5}
_HZ = 50
_RECORDED = 4  # robots that keep a black box; a step costs calibration 12 ms, each of two times
_NULL_FLEETS = 400


def fault_of(number: int, robots: int) -> str:
    """The fault that a robot has; empty for a sound one."""
    places = np.random.default_rng(7).permutation(robots)
    begin = 0
    for fault, share in FAULTS.items():
        count = max(1, share * robots // 1000)
        if number in places[begin : begin + count]:
            return fault
        begin += count
    return ""


def live(number: int, *, bundle: Path, folder: Path, steps: int, robots: int) -> None:
    """Let a robot live for some minutes, and leave what it would bring home."""
    fault, rng = fault_of(number, robots), np.random.default_rng(number)
    place = folder / f"robot-{number:04}"
    if (place / "done").exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    scale = np.full(steps, 1 + 0.02 * rng.standard_normal())  # no two robots meet the same
    if fault == "writes":
        scale *= 2
    if fault == "drift of gate":
        scale *= np.linspace(0.6, 1.6, steps)
    clock = ManualClock()
    snapshots = SnapshotPolicy(place / "memory", every_writes=1 if fault == "saves" else 20)
    box = None
    if number % max(1, robots // _RECORDED) == 0:
        box = BlackBox(place / "robot.rec", file_bytes=1 << 17)
    with (
        Session.open(bundle, clock=clock, snapshots=snapshots, black_box=box) as session,
        (place / "metrics.jsonl").open("w") as file,
    ):
        lines = JsonLines(session, file, 10, clock)
        (spec,) = session.manifest.inputs
        for each in scale:
            value = each * rng.standard_normal(spec.shape)
            session.step(**{spec.name: value.astype(spec.dtype)})
            clock.sleep_until_ns(clock.now_ns() + 1_000_000_000 // _HZ)
            lines.tick()
        session.save()
    if fault == "unreadable":
        slot = place / "memory" / "slot-a.snap"
        content = bytearray(slot.read_bytes())
        content[len(content) // 2] ^= 1
        slot.write_bytes(content)
    (place / "done").touch()


@click.command()
@click.option("--bundle", type=BUNDLE, required=True, help="That the robots step.")
@click.option("--scratch", type=FOLDER, required=True, help="Where the robots live; kept.")
@click.option("--robots", type=COUNT, default=200, show_default=True)
@click.option("--steps", type=COUNT, default=8000, show_default=True)
@out_option("The result (.json).")
def fleet(bundle: Path, scratch: Path, robots: int, steps: int, out: Path) -> None:
    """Simulate robots, collect what they bring home, and look who is named."""
    homes = scratch / f"{robots}x{steps}"
    one = partial(live, bundle=bundle, folder=homes, steps=steps, robots=robots)
    with (
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
        progress(robots, "living") as report,
    ):
        for done, _ in enumerate(pool.map(one, range(robots), chunksize=10), 1):
            report(done)
    if len(list(homes.iterdir())) != robots:
        raise click.ClickException(f"{homes} holds other robots: remove it")
    times: dict[str, float] = {}
    for name, cluster in (("cluster", "local"), ("alone", None)):
        shutil.rmtree(scratch / name, ignore_errors=True)
        begun = time.perf_counter()
        collect([homes], scratch / name, bundles=[bundle], cluster=cluster)
        times[name] = time.perf_counter() - begun
    same = contents(scratch / "cluster") == contents(scratch / "alone")
    again = collect([homes, homes], scratch / "cluster", bundles=[bundle])
    begun = time.perf_counter()
    report_ = judge(scratch / "cluster", storage=load_storage("emmc-16gb"))
    times["judged"] = time.perf_counter() - begun
    write_whole(scratch / "fleet.html", html(report_, f"{robots:,} simulated robots").encode())
    faults = {f"robot-{i:04}": fault_of(i, robots) for i in range(robots)}
    named = {(finding.robot, finding.what) for finding in report_.findings}
    planted = {(name, fault) for name, fault in faults.items() if fault}
    sound = [name for name, fault in faults.items() if not fault]
    accused = sorted(set(report_.named) & set(sound))
    shutil.rmtree(scratch / "met", ignore_errors=True)
    met = fleet_episodes([homes], bundle, scratch / "met")
    model = report_.robots[0].model
    rule: dict[str, Any] = {"write_rate": 0.1}
    begun = time.perf_counter()
    in_process = calibrate(model, scratch / "met", **rule)
    times["calibrated"] = time.perf_counter() - begun
    on_cluster = calibrate(model, scratch / "met", cluster="local", **rule)
    record = {
        "robots": robots,
        "steps_each": steps,
        "planted": {fault: sum(f == fault for f in faults.values()) for fault in FAULTS},
        "found": {
            fault: sum(one in named for one in planted if one[1] == fault) for fault in FAULTS
        },
        "also_named": sorted({what for robot, what in named if (robot, what) not in planted}),
        "sound": len(sound),
        "accused": accused,
        "accused_share": len(accused) / len(sound),
        "null_fleets": null_fleets(),
        "cluster_is_exact": same,
        "collected_twice": {"robots": len(again.robots), "new": len(again.new)},
        "steps": report_.steps,
        "steps_expected": robots * steps,
        "episodes": len(met.files),
        "threshold": in_process.gates[0].threshold,
        "calibration_is_exact": in_process.gates == on_cluster.gates,
        "seconds": times,
    }
    write_whole(out, canonical_json(record))
    click.echo(canonical_json(record))


def contents(folder: Path) -> dict[str, bytes]:
    """All tables of a fleet, by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / PARTS).glob("*.parquet"))}


def null_fleets() -> list[dict[str, Any]]:
    """How often a question names somebody in fleets in which all robots are sound."""
    rng, table = np.random.default_rng(1), []
    for tails in ("normal", "Student's t of 5"):
        for robots in (8, 30, 300, 1000):
            named = []
            for _ in range(_NULL_FLEETS):
                normal = tails == "normal"
                drawn = rng.standard_normal(robots) if normal else rng.standard_t(5, robots)
                rates = np.exp(np.log(0.1) + 0.1 * drawn)
                counts = rng.poisson(rates * 10_000)
                figures = {str(i): (c / 10_000, int(c)) for i, c in enumerate(counts.tolist())}
                named.append(len(list(outliers("writes", figures, "", "{:g}"))))
            table.append(
                {
                    "tails": tails,
                    "robots": robots,
                    "fleets": _NULL_FLEETS,
                    "fleets_with_an_accusation": sum(n > 0 for n in named) / _NULL_FLEETS,
                    "robots_accused": sum(named) / (robots * _NULL_FLEETS),
                    "aimed_at": FALSE_ALARM,
                }
            )
    return table
