"""``stategate drift``: does a candidate still do what its float model does, after many steps."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.calibration.drift.judge import check_judge
from stategate.calibration.drift.loop import drift as compare
from stategate.calibration.drift.record import DriftLimits, DriftReport, Point
from stategate.calibration.drift.seal import REPORT, check_sealable, seal
from stategate.cli.options import command_with
from stategate.common.console import progress, who_and_why
from stategate.contract import Bundle, canonical_json, refuse_to_replace
from stategate.contract.durable import check_writable
from stategate.contract.episodes import EpisodeSet

_LIMITS = DriftLimits()
_SHARE = click.FloatRange(min=0)


@click.command()
@click.argument("reference", metavar="FLOAT", type=click.Path(exists=True, path_type=Path))
@click.argument("candidate", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--episode",
    "episode_path",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Held-out inputs: one .npz, or a folder of them; labels in them are judged.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 100_000_000),
    help="Steps of each episode, repeated if short; default: its own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for drift.json and drift.html.",
)
@click.option(
    "--max-output-error",
    type=_SHARE,
    help="Largest output error, in units of the largest output; not judged if left out.",
)
@click.option(
    "--max-mean-error",
    type=_SHARE,
    default=_LIMITS.mean_error,
    show_default=True,
    help="Mean over the steps of the largest output error.",
)
@click.option(
    "--max-flip-rate",
    type=_SHARE,
    default=_LIMITS.flip_rate,
    show_default=True,
    help="Share of gate decisions that may differ.",
)
@click.option(
    "--max-write-change",
    type=_SHARE,
    default=_LIMITS.write_change,
    show_default=True,
    help="Difference of the write rates.",
)
@click.option(
    "--max-norm-growth",
    type=_SHARE,
    default=_LIMITS.norm_growth,
    show_default=True,
    help="Largest norm of a state, in units of the float model's.",
)
@click.option(
    "--max-accuracy-loss",
    type=_SHARE,
    default=_LIMITS.accuracy_loss,
    show_default=True,
    help="Accuracy that may be lost, where there are labels.",
)
@click.option(
    "--diverged-above",
    type=_SHARE,
    default=_LIMITS.diverged_above,
    show_default=True,
    help="Output error of the first diverging step that is told.",
)
@click.option(
    "--seal",
    "sealed",
    type=click.Path(path_type=Path),
    help="Write the candidate as a sealed bundle there, if it passes or is accepted.",
)
@click.option(
    "--accept",
    metavar="WHO: WHY",
    help="Seal a candidate that is beyond its limits; the receipt keeps who did, and why.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def drift(
    ctx: click.Context,
    reference: Path,
    candidate: Path,
    episode_path: Path,
    steps: int | None,
    out: Path,
    max_output_error: float | None,
    max_mean_error: float,
    max_flip_rate: float,
    max_write_change: float,
    max_norm_growth: float,
    max_accuracy_loss: float,
    diverged_above: float,
    sealed: Path | None,
    accept: str | None,
    as_json: bool,
) -> None:
    """Step FLOAT and CANDIDATE through the same episodes, each on its own state.

    Writes drift.json, and drift.html with plots. Exits with 1 where a limit is broken or the
    candidate fails; with --accept only where it fails.

    \b
    Example:
      stategate drift build/aura build/aura-int8 --episode held-out.npz --out build/drift \\
          --seal build/small
    """
    if accept is not None and sealed is None:
        raise click.UsageError("--accept is for a bundle to be sealed: --seal BUNDLE")
    accept = who_and_why(accept)
    if {reference.resolve(), candidate.resolve()} & {out.resolve(), *out.resolve().parents}:
        raise click.UsageError("--out needs a folder outside of the bundles")
    check_writable(out / REPORT)
    bundles = Bundle.open(reference), Bundle.open(candidate)
    check_judge(*bundles, command_with(ctx, candidate, reference))
    if sealed is not None:
        if sealed.resolve() in (reference.resolve(), out.resolve(), *out.resolve().parents):
            raise click.UsageError("--seal needs a folder apart from FLOAT and from the report")
        check_sealable(*bundles)
        refuse_to_replace(sealed)
    limits = DriftLimits(
        max_output_error,
        max_mean_error,
        max_flip_rate,
        max_write_change,
        max_norm_growth,
        max_accuracy_loss,
        diverged_above,
    )
    episodes = EpisodeSet.open(episode_path)
    horizon = steps or max(file.steps for file in episodes.files)
    total = len(episodes) * steps if steps else episodes.steps
    with progress(total, "stepping both") as report:
        result = compare(
            reference,
            candidate,
            episodes,
            horizon,
            repeat=steps is not None,
            limits=limits,
            report=report,
        )
    raw = canonical_json(result)
    result.save(out / REPORT)
    result.save(out / "drift.html")
    if as_json:
        click.echo(raw, nl=False)
    else:
        _tell(result, out)
    written = None if sealed is None else seal(sealed, *bundles, result, raw, accept)
    if sealed is not None and written is None:
        click.echo(f"not sealed: {sealed}", err=True)
    elif written is not None:
        over = f", accepted by {accept}" if result.findings else ""
        click.echo(f"sealed: {sealed}{over}", err=True)
    ctx.exit(0 if result.passed or written is not None else 1)


def _tell(result: DriftReport, out: Path) -> None:
    click.echo(
        f"{result.candidate.model}: {result.candidate.state_bytes:,} bytes of state beside "
        f"{result.reference.state_bytes:,}, {len(result.episodes)} episode(s)"
    )
    for point in result.milestones:
        click.echo(_line(point))
    for name, (theirs, ours) in result.total.norms.items():
        click.echo(f"largest norm of state {name}: {theirs:.5g} -> {ours:.5g}")
    for what, first in (
        ("decision that differs", result.first_flip),
        (f"output error above {result.limits.diverged_above:g}", result.first_divergence),
    ):
        click.echo(f"first {what}: " + (f"step {first[0]:,} of {first[1]}" if first else "none"))
    for name, reason in result.not_compared.items():
        click.echo(f"not compared: {name}: {reason}")
    for finding in result.findings:
        click.echo(f"beyond: {finding}")
    click.echo(f"{'passed' if result.passed else 'FAILED'}: {out / 'drift.html'}")


def _line(point: Point) -> str:
    rates, accuracies = point.write_rates, point.accuracies
    told = f", right {accuracies[0]:.2%} -> {accuracies[1]:.2%}" if accuracies else ""
    return (
        f"{point.step:>9,} steps: output error {point.output_error:.2g} (mean "
        f"{point.output_error_mean:.2g}), state error {point.state_error:.2g}, "
        f"{point.flips} flips, writes {rates[0]:.2%} -> {rates[1]:.2%}{told}"
    )
