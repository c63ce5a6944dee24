"""Tell machine noise from a changed result: ``python -m lab compare-evidence``.

Results of two commits, or of two files, are matched by what they answer: every field of a row that
names something (model, plan, task, seed, steps, threshold) and none that was measured. Then

* times and ratios of times may differ by a factor of 1.25, or as far as their ranges overlap;
* a share of counted events (right of judged, successes of episodes) of one training may differ as
  far as Fisher's exact test allows; events of one stream depend on each other, so this test is
  too ready to call them changed and never too slow;
* a figure of two trainings or more on both sides may differ as far as Welch's t test allows;
* a figure of one training, which no test can judge, is unclear where it differs;
* bytes, verdicts and names must be equal; new digests are said, because the question is new.

Each test is at 5 % over all figures of a file together (Bonferroni).
"""

from __future__ import annotations

import json
import math
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any, NamedTuple

import click

from stategate.common.statistics import student_t
from stategate.contract.errors import SpecError

_ROOM = Path("docs/evidence")
_NAMES = {  # fmt: skip
    "fleets",
    "robots",
    "tails",
    "arm",
    "bundle",
    "calibrated",
    "config",
    "form",
    "hold",
    "horizon",
    "isa",
    "iterations",
    "model",
    "plan",
    "policy",
    "precision",
    "processes",
    "reading",
    "rule",
    "seed",
    "steps",
    "stream",
    "streams",
    "task",
    "task_metric_name",
    "threshold",
    "what",
    "wiped",
}
_ALL = {"right": ("judged", "asked"), "successes": ("episodes",), "written": ("events",)}
_TIMES = ("_us", "_us_range", "_ratio", "_seconds")
_EXACT = ("bytes", "resident_bytes", "instructions_quiet", "instructions_write", "vacuous")
_DIGESTS = ("digest", "weights", "recipe", "engine", "machine", "backbone_sha256")
_FACTOR = 1.25
_LEVEL = 0.05

Identity = tuple[tuple[str, Any], ...]
Figures = dict[tuple[Identity, str], dict[Any, Any]]  # by seed


class Share(NamedTuple):
    """Counted events: so many of all."""

    hits: int
    trials: int

    def __str__(self) -> str:
        return f"{self.hits}/{self.trials}"


class Finding(NamedTuple):
    """How one figure stands.

    Attributes:
        verdict: ``same``, ``noise``, ``unclear``, ``changed``, ``digest``, ``gone`` or ``new``.
        row: What it answers, without its seed.
        field: Its name.
        before: Figures by seed.
        after: The same, now.
    """

    verdict: str
    row: Identity
    field: str
    before: Mapping[Any, Any]
    after: Mapping[Any, Any]

    def __str__(self) -> str:
        names = " ".join(f"{name}={value}" for name, value in self.row if value is not None)
        return (
            f"{self.verdict}: {names}: {self.field} {_short(self.before)} -> {_short(self.after)}"
        )


@click.command("compare-evidence")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--against", default="HEAD", show_default=True, help="A commit, or a file of such results."
)
def compare_evidence(files: tuple[Path, ...], against: str) -> None:
    """Say whether FILES of results changed, or only the machine's noise in them.

    FILES are docs/evidence/*.json where none is named. Exit code 1: a result changed or is gone.

    \b
    Example:
      python -m lab compare-evidence docs/evidence/controlled.json --against HEAD~3
    """
    has_changed = False
    for path in files or sorted(_ROOM.glob("*.json")):
        older = _text_before(path, against)
        findings = compare(_rows(older, f"{path} of {against}"), _rows(path.read_text(), str(path)))
        counts = Counter(finding.verdict for finding in findings)
        summary = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))
        click.echo(f"{path}: {summary or 'no figures'}")
        for finding in findings:
            if finding.verdict in ("changed", "gone", "unclear"):
                click.echo(f"  {finding}")
        has_changed = has_changed or counts["changed"] + counts["gone"] > 0
    raise SystemExit(int(has_changed))


def compare(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """How every figure of two lists of rows stands."""
    old, new = _figures(before), _figures(after)
    level = _LEVEL / max(1, len(old.keys() & new.keys()))
    findings = []
    for row, field in old | new:
        was, now = old.get((row, field), {}), new.get((row, field), {})
        if not now or not was:
            verdict = "new" if now else "gone"
        elif was == now:
            verdict = "same"
        else:
            verdict = _verdict(field, was, now, level)
        findings.append(Finding(verdict, row, field, was, now))
    return findings


def _verdict(field: str, was: Mapping[Any, Any], now: Mapping[Any, Any], level: float) -> str:
    pairs = [(was[seed], now[seed]) for seed in was.keys() & now.keys()]
    values = [*was.values(), *now.values()]
    is_share = all(isinstance(value, Share) for value in values)
    if was.keys() - now.keys():
        return "gone"  # a training that counted is missing
    if field in _DIGESTS:
        return "digest"
    if field.endswith(_TIMES):
        return "noise" if all(_is_as_fast(*pair) for pair in pairs) else "changed"
    if pairs and all(a == b for a, b in pairs):
        return "same"  # and there are more trainings
    if field.endswith(_EXACT) or not (is_share or all(map(_is_number, values))):
        return "changed"
    if len(was) > 1 and len(now) > 1:
        within = _agrees(list(map(_number, was.values())), list(map(_number, now.values())), level)
        return "noise" if within else "changed"
    if is_share and pairs:
        return "noise" if all(fisher(a, b) >= level for a, b in pairs) else "changed"
    return "unclear"


def fisher(a: Share, b: Share) -> float:
    """Two-sided p of Fisher's exact test that two shares are of one rate."""
    hits, total = a.hits + b.hits, a.trials + b.trials

    def log_chance(k: int) -> float:
        return _log_choose(a.trials, k) + _log_choose(b.trials, hits - k)

    least, most = max(0, hits - b.trials), min(hits, a.trials)
    likelihood = log_chance(a.hits) + 1e-9
    unlikely = (log_chance(k) for k in range(least, most + 1) if log_chance(k) <= likelihood)
    return min(1.0, math.fsum(math.exp(log - _log_choose(total, hits)) for log in unlikely))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _agrees(was: list[float], now: list[float], level: float) -> bool:
    """Whether two means differ no more than Welch's t test (1947) allows."""
    parts = [variance(values) / len(values) for values in (was, now)]
    difference = abs(fmean(was) - fmean(now))
    if not sum(parts):
        return difference == 0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(was) - 1) + parts[1] ** 2 / (len(now) - 1))
    return difference <= student_t(max(1, int(freedom)), 1 - level) * math.sqrt(sum(parts))


def _is_as_fast(was: Any, now: Any) -> bool:
    if isinstance(was, tuple) and isinstance(now, tuple):
        return bool(min(was) <= _FACTOR * max(now) and min(now) <= _FACTOR * max(was))
    if not (_is_number(was) and _is_number(now)):
        return False
    return bool(was <= _FACTOR * now and now <= _FACTOR * was)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return value.hits / value.trials if isinstance(value, Share) else float(value)


def _figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    figures: Figures = defaultdict(dict)
    for row in rows:
        for names, field, value in _leaves(row, {}):
            seed = names.get("seed")
            group = tuple(sorted((name, v) for name, v in names.items() if name != "seed"))
            if seed in figures[group, field]:
                raise SpecError("two rows answer one question", found=f"{dict(group)}, seed {seed}")
            figures[group, field][seed] = value
    return dict(figures)


def _leaves(
    node: Mapping[str, Any], outer: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """Every figure of a row with what names it; counted events together with all of them."""
    node = {**node, **node.get("cell", {})}
    results = {"successes": "steps", "calibrated": "threshold"}  # no names where these are so
    measured = {result for name, result in results.items() if node.get(name)}
    own = {name: value for name, value in node.items() if name in _NAMES - measured}
    names = {**outer, **own}
    wholes = {whole for hits in node.keys() & _ALL.keys() for whole in _ALL[hits]}
    for name in node.keys() - own.keys() - wholes - {"cell"}:
        value = node[name]
        if name in _ALL:
            trials = next(node[whole] for whole in _ALL[name] if whole in node)
            yield names, name, Share(_sum(value), _sum(trials))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                yield from _leaves(each, names)
        else:
            yield names, name, tuple(value) if isinstance(value, list) else value


def _sum(value: int | list[int]) -> int:
    return sum(value) if isinstance(value, list) else value


def _text_before(path: Path, against: str) -> str:
    if Path(against).is_file():
        return Path(against).read_text()
    command = ["git", "show", f"{against}:./{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise SpecError(
            "there is nothing to compare with",
            found=shown.stderr.strip(),
            expected="a commit that holds the file, or another file of such results",
            remedy=f"git log --oneline -- {path}",
        )
    return shown.stdout


def _rows(text: str, place: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(text)
    except ValueError as problem:
        raise SpecError("these are no results", found=f"{place}: {problem}") from problem
    rows = content.get("rows", [content]) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SpecError("these are no results", found=place, expected="a list of rows, as JSON")
    return rows


def _short(figures: Mapping[Any, Any]) -> str:
    texts = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in figures.values()]
    return " ".join(texts[:5]) + " ..." * (len(texts) > 5) if texts else "nothing"
