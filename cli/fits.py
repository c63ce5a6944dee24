"""``stategate fits``: will it fit a device, is it legal there, and what bounds its step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import stategate
from stategate.bench.wear import years_text
from stategate.cli.options import json_option
from stategate.cli.wear import finite
from stategate.common.console import note
from stategate.contract.bundle import MANIFEST
from stategate.contract.c_library import Engine

if TYPE_CHECKING:
    from stategate.bench.fits.report import FitsReport
    from stategate.targets.fits import Fit


@click.command()
@click.argument("model")
@click.option("--target", help="Device; this machine if left out.")
@click.option("--all", "every", is_flag=True, help="Every device that is known.")
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    help="Sessions that share the graph; the bundle's if left out.",
)
@click.option(
    "--horizon",
    "horizon_steps",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="Steps after which the key-value cache that the memory replaces is looked at.",
)
@click.option(
    "--rate",
    "rate_hz",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    default=30.0,
    show_default=True,
    help="Steps per second, for the life of the storage.",
)
@click.option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    default="onnxruntime",
    show_default=True,
    help="What shall step it there.",
)
@click.option("--precision", help="Of a MODEL that is no bundle yet; float32 if left out.")
@click.option(
    "--measure", is_flag=True, help="Also open and step it here, and compare with the prediction."
)
@json_option
def fits(
    model: str,
    target: str | None,
    every: bool,
    as_json: bool,
    **options: Any,
) -> None:
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
    measured = report.measured
    if as_json:
        facts = asdict(report)
        wear = facts.pop("wear")
        facts["fits"] = [one | {"wear": wear[one["target"]]} for one in facts["fits"]]
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(f"{'model':<12} {report.footprint.model}, {report.footprint.precision}")
        if every:
            _print_table(report)
        else:
            _print_one(report)
        if measured is not None:
            error = report.predicted_added_bytes / measured.added - 1
            click.echo(
                f"{'measured':<12} {measured.added:,} bytes added here, "
                f"{report.predicted_added_bytes:,} predicted: {error:+.1%}"
            )
    if not report.passed:
        click.get_current_context().exit(1)


def _print_one(report: FitsReport) -> None:
    (one,), counted, rate_hz = report.fits, report.footprint, report.rate_hz
    wear = report.wear[one.target]
    memory = one.memory
    lines = [
        ("target", one.target),
        ("verdict", f"{one.verdict}: {one.reason}"),
        ("memory", f"{memory.total:>15,} bytes, predicted"),
        ("", f"{memory.process:>15,} process: Python and the engine's library; as on x86-64"),
        ("", f"{memory.engine:>15,} engine: a session, whatever the model, and its nodes"),
        (
            "",
            f"{memory.weights:>15,} weights: {counted.graph_bytes:,} of graph or library; copies",
        ),
        ("", f"{memory.states:>15,} states: banks of {counted.state_bytes:,} bytes, all sessions"),
        ("", f"{memory.activations:>15,} activations, inputs and outputs"),
        ("device", f"{_number(one.memory_bytes):>15} bytes"),
        ("reserve", f"{_number(one.reserve_bytes):>15} for firmware and system"),
        ("left", f"{_number(one.left_bytes):>15}"),
    ]
    for engine, peak in one.build_peak_bytes.items():
        lines.append(("build peak", f"{_number(peak):>15} with {engine}"))
    lines.append(("snapshots", f"{one.snapshot_space_bytes:>15,} bytes of storage"))
    lines.append(("replaces", _replaces(one, report.horizon_steps)))
    lines.append(("floor", f"{_us(one.bandwidth_floor_us)} a step to read weights and states once"))
    lines.append(("floor", f"{_us(one.compute_floor_us)} a step for products on its accelerator"))
    lines.append(("", "both are bounds and not promises; caches lift the first"))
    lines.append(("legal with", ", ".join(one.legal) or "no engine"))
    for medium, policies in wear.items():
        years = ", ".join(f"{policy} {years_text(value)}" for policy, value in policies.items())
        lines.append(("storage", f"{medium} at {rate_hz:g} Hz lasts, in years: {years}"))
    if not wear:
        lines.append(("storage", "unknown; stategate wear takes a medium's figures"))
    lines += [("note", note) for note in memory.assumptions]
    for label, text in lines:
        click.echo(f"{label:<12} {text}")


def _print_table(report: FitsReport) -> None:
    click.echo(
        f"{'target':<24}{'verdict':<14}{'needs':>13}{'floor':>11}"
        f"{'years':>9}  reason (years: worst medium, every write)"
    )
    for one in report.fits:
        years = [p["every write"] for p in report.wear[one.target].values()]
        lives = [value for value in years if value is not None]
        worst = "unknown" if not years else years_text(min(lives, default=None))
        click.echo(
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
