"""``stategate fits``: will it fit a device, is it legal there, and what bounds its step."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from stategate.bench.wear import wear_rows, write_rate, years_text
from stategate.cli.wear import finite
from stategate.contract import Bundle, Manifest
from stategate.contract.bundle import MANIFEST
from stategate.contract.c_library import Engine
from stategate.contract.errors import ParityError
from stategate.contract.staging import scratch_folder
from stategate.targets import TargetProfile, generic, load, load_storage, names, recognise
from stategate.targets.detect import detect
from stategate.targets.fits import Fit, Footprint, fit, load_costs, predict

HORIZON_STEPS = 100_000
_ONLY_SIZES = "fits: only its size is asked"


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
    default=HORIZON_STEPS,
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
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def fits(
    context: click.Context,
    model: str,
    target: str | None,
    every: bool,
    sessions: int | None,
    horizon_steps: int,
    rate_hz: float,
    engine: Engine,
    precision: str | None,
    measure: bool,
    as_json: bool,
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
    profiles = [load(name) for name in names()] if every else [_device(target)]

    from stategate.bench.fits.footprint import footprint, plan_of
    from stategate.bench.measure.resident import measure_resident

    with _bundle(context, model, precision, engine) as bundle:
        manifest, print_ = bundle.manifest, footprint(bundle, engine)
        if measure and manifest.sessions != 1:
            raise click.UsageError("--measure opens one session, and this bundle serves several")
        costs, plan = load_costs(engine), plan_of(bundle)
        found = [
            fit(print_, plan, p, costs, sessions=sessions, horizon_steps=horizon_steps)
            for p in profiles
        ]
        measured = measure_resident(bundle.path, engine=engine) if measure else None
    predicted = predict(print_, costs)
    count = sessions or print_.sessions
    wear = {p.name: _wear(p, manifest, print_.snapshot_bytes, rate_hz, count) for p in profiles}
    if as_json:
        report = {
            "footprint": asdict(print_),
            "horizon_steps": horizon_steps,
            "rate_hz": rate_hz,
            "measured": asdict(measured) if measured else None,
            "predicted_added_bytes": predicted.added,
            "fits": [asdict(one) | {"wear": wear[one.target]} for one in found],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"{'model':<12} {print_.model}, {print_.precision}")
        if every:
            _print_table(found, wear)
        else:
            _print_one(found[0], print_, wear[found[0].target], horizon_steps, rate_hz)
        if measured is not None:
            error = predicted.added / measured.added - 1
            click.echo(
                f"{'measured':<12} {measured.added:,} bytes added here, {predicted.added:,} "
                f"predicted: {error:+.1%}"
            )
    if not any(one.verdict == "fits" for one in found):
        context.exit(1)


def _device(target: str | None) -> TargetProfile:
    """The device that is named, or this machine with the memory that it says it has."""
    if target is not None:
        return load(target)
    host = detect()
    profile = recognise(host.compatible) or generic(host.machine)
    if profile.memory_bytes.value is not None or host.memory_bytes is None:
        return profile
    told = msgspec.structs.replace(
        profile.memory_bytes,
        value=host.memory_bytes,
        source="MemTotal of this machine",
        date=date.today(),
    )
    return msgspec.structs.replace(profile, memory_bytes=told)


@contextlib.contextmanager
def _bundle(
    context: click.Context, model: str, precision: str | None, engine: Engine
) -> Iterator[Bundle]:
    """The bundle at a path, or one that is exported for the moment by the export verb."""
    path = Path(model)
    if (path / MANIFEST).exists() or (path.is_dir() and precision is None):
        if precision is not None:
            raise click.UsageError("a bundle has its precision; --precision is for a model")
        yield Bundle.open(path)
        return
    # The command line composes verbs of rooms that do not know each other.
    root = context.find_root().command
    export = root.get_command(context, "export") if isinstance(root, click.Group) else None
    if export is None:
        raise click.UsageError(f"{model} is no bundle, and there is no export verb to make one")
    with scratch_folder() as scratch:
        out = Path(scratch) / "bundle"
        click.echo(f"exporting {model} to look at it", err=True)
        # Sizes do not depend on how well it was verified, so a few steps and wide limits do.
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                context.invoke(
                    export,
                    model=model,
                    out=out,
                    steps=32,
                    precision=precision or "float32",
                    engines="onnxruntime" if engine == "onnxruntime" else "onnxruntime,native",
                    accept=None if precision in (None, "float32") else _ONLY_SIZES,
                )
        except ParityError as problem:  # its remedy is for options that are not here
            raise ParityError(
                problem.what,
                remedy=f"make the bundle first, on inputs that the model is made for, and look at "
                f"that: stategate export {model} --episode FILE --out bundle, then stategate fits "
                "bundle",
            ) from problem
        yield Bundle.open(out)


def _wear(
    profile: TargetProfile, manifest: Manifest, snapshot_bytes: int, rate_hz: float, sessions: int
) -> dict[str, dict[str, float | None]]:
    """Years of each medium under each snapshot policy; None: it never wears out.

    Each session has snapshots of its own, so the years are shared among them.
    """
    writes = write_rate(manifest)
    return {
        medium: {
            row.policy: None if row.years is None else row.years / sessions
            for row in wear_rows(load_storage(medium), snapshot_bytes, rate_hz, writes)
        }
        for medium in profile.storage.value or ()
    }


def _print_one(
    one: Fit, print_: Footprint, wear: dict[str, Any], horizon_steps: int, rate_hz: float
) -> None:
    memory = one.memory
    lines = [
        ("target", one.target),
        ("verdict", f"{one.verdict}: {one.reason}"),
        ("memory", f"{memory.total:>15,} bytes, predicted"),
        ("", f"{memory.process:>15,} process: Python and the engine's library; as on x86-64"),
        ("", f"{memory.engine:>15,} engine: a session, whatever the model, and its nodes"),
        (
            "",
            f"{memory.weights:>15,} weights: {print_.graph_bytes:,} of graph or library; copies",
        ),
        ("", f"{memory.states:>15,} states: banks of {print_.state_bytes:,} bytes, all sessions"),
        ("", f"{memory.activations:>15,} activations, inputs and outputs"),
        ("device", f"{_number(one.memory_bytes):>15} bytes"),
        ("reserve", f"{_number(one.reserve_bytes):>15} for firmware and system"),
        ("left", f"{_number(one.left_bytes):>15}"),
    ]
    for engine, peak in one.build_peak_bytes.items():
        lines.append(("build peak", f"{_number(peak):>15} with {engine}"))
    lines.append(("snapshots", f"{one.snapshot_space_bytes:>15,} bytes of storage"))
    lines.append(("replaces", _replaces(one, horizon_steps)))
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


def _print_table(found: list[Fit], wear: dict[str, dict[str, Any]]) -> None:
    click.echo(
        f"{'target':<24}{'verdict':<14}{'needs':>13}{'floor':>11}"
        f"{'years':>9}  reason (years: worst medium, every write)"
    )
    for one in found:
        years = [p["every write"] for p in wear[one.target].values()]
        known = [value for value in years if value is not None]
        worst = "unknown" if not years else years_text(min(known, default=None))
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
