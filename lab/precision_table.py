"""What precision plans cost: one row for each model and plan, from the files that others wrote.

A folder has one folder a model, and in it one a plan, as `make precision-table` fills them:

    <model>/pace.json             `python -m lab pace`: float32 first, then every other bundle
    <model>/episode               what all were stepped through; not looked at here
    <model>/float32/bundle        what the others are held against
    <model>/<plan>/bundle         the candidate, and
    <model>/<plan>/drift.json     `stategate drift` of it; or, where no bundle could be made,
    <model>/<plan>/refused.txt    what the command said instead

Digests tie them together: a drift report of another bundle than the one beside it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec

from stategate.calibration.drift.judge import check_judge
from stategate.calibration.drift.record import DriftReport, Point
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import CalibrationError
from stategate.contract.reading import read_json
from stategate.contract.specs import Record

FLOAT = "float32"
HORIZON = 10_000
BEGIN, END = "<!-- precision-table -->", "<!-- end of precision-table -->"

T = TypeVar("T")


class Row(Record, frozen=True, kw_only=True):
    """One plan of one model; figures are None where there is no bundle, or nothing to count.

    Attributes:
        model: Folder of the model.
        plan: Folder of the plan.
        verdict: ``reference`` for float32; ``passed`` or ``failed`` the limits of its drift report;
            ``refused`` where no bundle could be made.
        reason: Which limits were broken, or why there is no bundle.
        bytes: Of the step's graph, weights and all.
        state_bytes: Of the memory.
        p50_us: Median time of ``Session.step``.
        p50_ratio: The same over that of float32 in the same run.
        steps: Steps of all episodes together.
        error_at_10000: Mean over 10,000 steps of the largest error of an output in the step, in
            units of the largest magnitude that the float model's output has reached.
        worst_error_at_10000: Largest of them.
        flip_rate: Share of decisions of hard gates that differ from the float model's.
        task_metric: See ``task_metric_name``.
        task_metric_name: ``accuracy``: share of labelled answers that are right; ``agreement``:
            share of steps in which a detector (above 0.5) decides as the float model does.
        halted_at: Step in which the candidate failed and the comparison ended.
    """

    model: str
    plan: str
    verdict: Literal["reference", "passed", "failed", "refused"]
    reason: str = ""
    bytes: int | None = None
    state_bytes: int | None = None
    p50_us: float | None = None
    p50_ratio: float | None = None
    steps: int | None = None
    error_at_10000: float | None = None
    worst_error_at_10000: float | None = None
    flip_rate: float | None = None
    task_metric: float | None = None
    task_metric_name: str | None = None
    halted_at: int | None = None


class _Pace(Record, frozen=True):
    bundle: str
    digest: str
    p50_us: float
    ratio: float


def rows_of(folder: Path) -> list[Row]:
    """Every row, by model and plan in the order of names, float32 first.

    Raises:
        CalibrationError: Something is missing, damaged, too short, or belongs to another bundle.
        BundleError: A bundle is damaged.
    """
    models = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not models:
        raise CalibrationError(
            "there is nothing to collect",
            found=f"no folder of a model in {folder}",
            remedy="make precision-table",
        )
    return [row for model in models for row in _rows_of_model(model)]


def _rows_of_model(folder: Path) -> list[Row]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    plans = [path for path in folders if path.name not in (FLOAT, "episode")]
    pace = {one.digest: one for one in _read(folder / "pace.json", list[_Pace])}
    float_bundle = Bundle.open(folder / FLOAT / "bundle")
    check_judge(float_bundle)
    rows: list[Row] = []
    drifts: list[DriftReport] = []
    for plan in plans:
        if (plan / "refused.txt").exists():
            rows.append(_refused(plan))
            continue
        drift = _read(plan / "drift.json", DriftReport)
        bundle = Bundle.open(plan / "bundle")
        for side, opened in ((drift.reference, float_bundle), (drift.candidate, bundle)):
            if side.digest != opened.digest:
                raise CalibrationError(
                    f"{plan / 'drift.json'} is of another bundle",
                    found=f"digest {side.digest[:12]}",
                    expected=f"{opened.digest[:12]}, of {opened.path}",
                    remedy="make them again: delete the folder of the plan",
                )
        drifts.append(drift)
        rows.append(_measured(plan, bundle, drift, pace))
    if not drifts:
        raise CalibrationError(
            f"no plan of {folder.name} was measured",
            found=", ".join(plan.name for plan in plans) or "no plan",
            expected="at least one with a bundle and a drift report",
        )
    return [_reference(folder, float_bundle, drifts, pace), *rows]


def _measured(plan: Path, bundle: Bundle, drift: DriftReport, pace: dict[str, _Pace]) -> Row:
    """Of a candidate that was stepped beside its float model."""
    end = next((p for p in drift.milestones if p.step == HORIZON), None)
    if end is None and drift.fault is None:
        raise CalibrationError(
            f"{plan / 'drift.json'} is too short",
            found=f"{drift.total.step:,} steps",
            expected=f"a milestone at {HORIZON:,}",
        )
    total = drift.total
    metric, name = _metric(drift, 1)
    return Row(
        **_facts(plan, bundle, pace),
        verdict="passed" if drift.passed else "failed",
        reason="; ".join(drift.findings),
        steps=total.steps,
        error_at_10000=end.output_error_mean if end else None,
        worst_error_at_10000=end.output_error if end else None,
        flip_rate=total.flip_rate if total.decisions else None,
        task_metric=metric,
        task_metric_name=name,
        halted_at=None if drift.fault is None else total.steps,
    )


def _reference(
    folder: Path, bundle: Bundle, drifts: list[DriftReport], pace: dict[str, _Pace]
) -> Row:
    """The float model, as the longest comparison saw it."""
    longest = max(drifts, key=lambda drift: drift.total.steps)
    metric, name = _metric(longest, 0)
    return Row(
        **_facts(folder / FLOAT, bundle, pace),
        verdict="reference",
        steps=longest.total.steps,
        error_at_10000=0.0,
        worst_error_at_10000=0.0,
        flip_rate=0.0 if longest.total.decisions else None,
        task_metric=metric,
        task_metric_name=name,
    )


def _facts(plan: Path, bundle: Bundle, pace: dict[str, _Pace]) -> dict[str, Any]:
    timed = pace.get(bundle.digest)
    if timed is None:
        raise CalibrationError(
            f"{plan.parent / 'pace.json'} does not have this bundle",
            found=f"no digest {bundle.digest[:12]}",
            expected=f"{bundle.path} among its bundles",
            remedy="delete the file, and make it again",
        )
    return {
        "model": plan.parent.name,
        "plan": plan.name,
        "bytes": len(bundle.read(bundle.manifest.step_graph.file)),
        "state_bytes": bundle.manifest.state_bytes,
        "p50_us": timed.p50_us,
        "p50_ratio": timed.ratio,
    }


def _metric(drift: DriftReport, side: int) -> tuple[float | None, str | None]:
    total: Point = drift.total
    if total.accuracies is not None:
        return total.accuracies[side], "accuracy"
    if drift.halved:
        difference = max(drift.halved.values()) if side else 0
        return 1.0 - difference / total.steps, "agreement"
    return None, None


def _refused(plan: Path) -> Row:
    """What a command said instead of making a bundle: from its last error on, in one line."""
    text = (plan / "refused.txt").read_text(errors="replace")
    errors = list(re.finditer(r"^(?:Usage)?\w*Error: ", text, re.MULTILINE))
    if not errors or "Traceback (most recent call last)" in text:
        raise CalibrationError(
            f"{plan / 'refused.txt'} gives no reason",
            found=repr(text[-200:]),
            expected="the sentence of a refusal, beginning with the name of an error",
            remedy="a command that crashed is no refusal: run it by hand",
        )
    reason = "; ".join(line.strip() for line in text[errors[-1].end() :].splitlines())
    return Row(model=plan.parent.name, plan=plan.name, verdict="refused", reason=reason)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return read_json(path, kind)
    except (OSError, msgspec.MsgspecError) as problem:
        raise CalibrationError(
            f"{path} cannot be read", found=problem, expected="what the command of that name wrote"
        ) from problem


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, one table a model."""
    lines: list[str] = []
    for model in dict.fromkeys(row.model for row in rows):
        model_rows = [row for row in rows if row.model == model]
        metric = next((r.task_metric_name for r in model_rows if r.task_metric_name), "task metric")
        lines += [
            f"### {model}",
            "",
            "| plan | graph, bytes | state, bytes | p50, µs | x float32 | error at 10,000, mean "
            f"| largest | flips | {metric} | |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
            *(_line(row) for row in model_rows),
            "",
        ]
        broken = [row for row in model_rows if row.reason]
        lines += [f"* **{row.plan}**, {row.verdict}: {row.reason}" for row in broken]
        lines += [""] if broken else []
    return "\n".join(lines)


def _line(row: Row) -> str:
    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    cells = (
        row.plan,
        shown(row.bytes, ","),
        shown(row.state_bytes, ","),
        shown(row.p50_us, ".1f"),
        shown(row.p50_ratio, ".2f"),
        shown(row.error_at_10000, ".3g"),
        shown(row.worst_error_at_10000, ".2g"),
        shown(row.flip_rate, ".3%"),
        shown(row.task_metric, ".2%"),
        f"**{row.verdict}**" if row.verdict == "failed" else row.verdict,
    )
    return f"| {' | '.join(cells)} |"


def on_page(page: str, rows: Sequence[Row]) -> str:
    """A page with its table replaced, between two comments.

    Raises:
        CalibrationError: The comments are not there, or not once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in old + after or END in before + after:
        raise CalibrationError(
            "the page has no place for the table", expected=f"{BEGIN} and {END}, once each"
        )
    return f"{before}{BEGIN}\n\n{table(rows)}\n{END}{after}"


@click.command("precision-table")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The rows (.json).",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Markdown page whose table is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def precision_table(folder: Path, out: Path, page: Path | None, as_json: bool) -> None:
    """Collect what plans cost from FOLDER: bundles, drift reports, paces and refusals.

    \b
    Example:
      python -m lab precision-table build/precision --out build/bench/precision.json
    """
    check_writable(out)

    rows = rows_of(folder)
    raw = msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n"
    text = None if page is None else on_page(page.read_text(), rows)
    write_whole(out, raw)
    if page is not None and text is not None:
        write_whole(page, text.encode())
    if as_json:
        click.echo(raw, nl=False)
        return
    for row in rows:
        click.echo(f"{row.model}, {row.plan}: {row.verdict}{row.reason and f', {row.reason}'}")
    click.echo(f"written: {out}")
