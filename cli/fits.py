"""``stategate fits`` and ``device retarget``: will it fit a device, and bundles for another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import stategate
from stategate.bench.wear import state_lines, years_text
from stategate.cli.options import COUNT, FOLDER, POSITIVE, flag, option, verb
from stategate.cli.show import Line, leave_unless, show
from stategate.common.console import note
from stategate.contract.bundle import MANIFEST
from stategate.contract.c_library import Engine

if TYPE_CHECKING:
    from stategate.bench.fits.report import FitsReport
    from stategate.targets.fits import Fit


from stategate.cli.options import bundles_argument, out_option
from stategate.common.console import progress
from stategate.targets import load
from stategate.targets.fits import load_costs


@verb()
@click.argument("model")
@option("--target", help="Device; this machine if left out.")
@flag("--all", "Every device that is known.", "every")
@option("--sessions", type=COUNT, help="Sessions that share the graph; the bundle's if left out.")
@option(
    "--horizon",
    "horizon_steps",
    type=COUNT,
    default=100_000,
    help="Steps after which the key-value cache that the memory replaces is looked at.",
)
@option(
    "--rate",
    "rate_hz",
    type=POSITIVE,
    default=30.0,
    help="Steps per second, for the life of the flash.",
)
@option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    default="onnxruntime",
    help="What shall step it there.",
)
@option("--precision", help="Of a MODEL that is no bundle yet; float32 if left out.")
@flag("--measure", "Also open and step it here, and compare with the prediction.")
def fits(model: str, target: str | None, every: bool, **options: Any) -> None:
    """Say whether MODEL, a bundle or what `stategate export` takes, fits a device, and why.

    Exits with 1 where it fits none of the devices.

    \b
    Examples:
      stategate fits build/aura --target jetson-orin-nano-8gb
      stategate fits build/aura --all --sessions 16
      stategate fits mamba2 --all --engine native
    """
    if target and every:
        raise click.UsageError("--target and --all contradict each other; give one")
    if not (Path(model) / MANIFEST).exists():
        note(f"making a bundle of {model} to look at it")
    report = stategate.fits(model, "all" if every else target, **options)
    record = asdict(report)
    wear = record.pop("wear")
    record["fits"] = [one | {"wear": wear[one["target"]]} for one in record["fits"]]
    show(record, _lines(report, every))
    leave_unless(report.passed)


def _lines(report: FitsReport, every: bool) -> Iterator[Line]:
    yield "model", f"{report.footprint.model}, {report.footprint.precision}"
    yield from _table(report) if every else _one(report)
    if (measured := report.measured) is not None:
        error = report.predicted_added_bytes / measured.added - 1
        yield (
            "measured",
            f"{measured.added:,} bytes added here, "
            f"{report.predicted_added_bytes:,} predicted: {error:+.1%}",
        )


def _one(report: FitsReport) -> Iterator[Line]:
    (one,), counted, rate_hz = report.fits, report.footprint, report.rate_hz
    wear, memory = report.wear[one.target], one.memory
    yield "target", one.target
    yield "verdict", f"{one.verdict}: {one.reason}"
    if one.legal == ("c",):  # no process runs there, whose memory could be predicted
        return
    yield "memory", f"{memory.total:>15,} bytes, predicted"
    yield "", f"{memory.process:>15,} process: Python and the engine's library; as on x86-64"
    yield "", f"{memory.engine:>15,} engine: a session, whatever the model, and its nodes"
    yield "", f"{memory.weights:>15,} weights: {counted.graph_bytes:,} of graph or library; copies"
    yield "", f"{memory.states:>15,} states: banks of {counted.state_bytes:,} bytes, all sessions"
    yield "", f"{memory.activations:>15,} activations, inputs and outputs"
    yield "device", f"{_number(one.memory_bytes):>15} bytes"
    yield "reserve", f"{_number(one.reserve_bytes):>15} for firmware and system"
    yield "left", f"{_number(one.left_bytes):>15}"
    for engine, peak in one.build_peak_bytes.items():
        yield "build peak", f"{_number(peak):>15} with {engine}"
    yield "snapshots", f"{one.snapshot_space_bytes:>15,} bytes of storage"
    yield from state_lines(report.bytes)
    yield "replaces", _replaces(one, report.horizon_steps)
    yield "floor", f"{_us(one.bandwidth_floor_us)} a step to read weights and states once"
    yield "floor", f"{_us(one.compute_floor_us)} a step for products on its accelerator"
    yield "", "both are bounds and not promises; caches lift the first"
    yield "legal with", ", ".join(one.legal) or "no engine"
    for medium, policies in wear.items():
        years = ", ".join(f"{policy} {years_text(value)}" for policy, value in policies.items())
        yield "storage", f"{medium} at {rate_hz:g} Hz lasts, in years: {years}"
    if not wear:
        yield "storage", "unknown; stategate device wear --tbw takes a medium's rating"
    yield from (("note", note) for note in memory.assumptions)


def _table(report: FitsReport) -> Iterator[str]:
    yield (
        f"{'target':<24}{'verdict':<14}{'needs':>13}{'floor':>11}"
        f"{'years':>9}  reason (years: worst medium, every write)"
    )
    for one in report.fits:
        years = [p["every write"] for p in report.wear[one.target].values()]
        lives = [value for value in years if value is not None]
        worst = "unknown" if not years else years_text(min(lives, default=None))
        yield (
            f"{one.target:<24}{one.verdict:<14}{one.memory.total:>13,}"
            f"{_us(one.bandwidth_floor_us):>11}{worst:>9}  {one.reason}"
        )


def _replaces(one: Fit, horizon_steps: int) -> str:
    if one.kv_bytes is None:
        return "no key-value cache"
    text = f"{one.kv_bytes:>15,} bytes of key-value cache after {horizon_steps:,} steps"
    return text if one.kv_fits is None else f"{text}, which {'fits' if one.kv_fits else 'does not'}"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _us(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} us"


@verb("retarget")
@bundles_argument
@option("--target", required=True, help="Device that they shall be for.")
@out_option("Folder for them and report.json.", FOLDER)
def retarget_command(bundles: tuple[Path, ...], target: str, out: Path) -> None:
    """Write BUNDLES again for another device, those that are legal there and fit.

    Graphs and receipts stay as they are. Exits with 1 where one was refused.

    \b
    Example:
      stategate device retarget build/aura build/small --target raspberry-pi-5 --out build/pi
    """
    from stategate.bench.fits.retarget import REPORT, retarget

    profile, costs = load(target), load_costs()
    with progress(len(bundles), target, "bundles that are done stay") as report:
        result = retarget(list(bundles), profile, costs, out, report)
    lines = (f"{c.model} {c.precision}: {c.verdict}: {c.reason}" for c in result.cells)
    show(result, lines, out / REPORT)
    leave_unless(all(cell.bundle is not None for cell in result.cells))
