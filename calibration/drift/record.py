"""What a drift report says: figures by step, limits, and which of them were broken."""

from __future__ import annotations

from html import escape
from pathlib import Path

import msgspec

from stategate.contract.durable import write_whole
from stategate.contract.errors import ResultError
from stategate.contract.health import WarmUp
from stategate.contract.records import canonical_json
from stategate.contract.specs import Record


class DriftLimits(Record, frozen=True):
    """How far a candidate may drift; None where something is not judged."""

    output_error: float | None = None  # largest error of any output element in any step
    # mean over the steps of the largest error of any output element
    mean_error: float | None = 0.01
    flip_rate: float | None = 0.001  # share of gate decisions that differ
    write_change: float | None = 0.01  # difference of the two write rates, either way
    norm_growth: float | None = 1.1  # largest norm of a state, in units of the float model's
    # accuracy that the candidate may lose, where there are labels
    accuracy_loss: float | None = 0.005
    # output error from which a step counts as diverged; shown, not judged
    diverged_above: float = 0.01


class Point(Record, frozen=True):
    """Everything from the first step to this one, over all episodes that reach it.

    Errors are in units of the largest magnitude that the float model's tensor has reached.
    """

    step: int  # steps done in each episode
    steps: int  # steps done in all episodes together
    output_error: float  # largest error of an output in any step
    # largest since the point before
    recent_output_error: float = msgspec.field(name="output_error_here")
    output_error_mean: float  # mean over the steps of the largest error in the step
    state_error: float  # as ``output_error``, of the states after each step
    recent_state_error: float = msgspec.field(name="state_error_here")  # as ``recent_output_error``
    flips: int  # gate decisions that differed
    decisions: int  # gate decisions of one bundle
    writes: tuple[int, int]  # steps that wrote: of the float model, of the candidate
    norm_growth: float  # largest norm of any state, in units of the float model's largest
    # largest norm of each state: of the float model, of the candidate
    norms: dict[str, tuple[float, float]]
    right: tuple[int, int]  # labelled answers that were right: of the float model, of the candidate
    judged: int  # labelled answers

    def merged(self, other: Point) -> Point:
        """Both together: largest of what is largest, sums of what is counted."""
        steps = self.steps + other.steps
        mean = self.output_error_mean * self.steps + other.output_error_mean * other.steps
        largest = ["step", "norm_growth", "output_error", "recent_output_error"]
        largest += ["state_error", "recent_state_error"]
        counted = ("steps", "flips", "decisions", "judged")
        return msgspec.structs.replace(
            self,
            **{name: max(getattr(self, name), getattr(other, name)) for name in largest},
            **{name: getattr(self, name) + getattr(other, name) for name in counted},
            output_error_mean=mean / steps,
            writes=(self.writes[0] + other.writes[0], self.writes[1] + other.writes[1]),
            norms={
                name: (max(norms[0], other.norms[name][0]), max(norms[1], other.norms[name][1]))
                for name, norms in self.norms.items()
            },
            right=(self.right[0] + other.right[0], self.right[1] + other.right[1]),
        )

    @property
    def flip_rate(self) -> float:
        """Share of decisions that differed."""
        return self.flips / max(1, self.decisions)

    @property
    def write_rates(self) -> tuple[float, float]:
        """Share of steps that wrote: float model, candidate."""
        return self.writes[0] / self.steps, self.writes[1] / self.steps

    @property
    def accuracies(self) -> tuple[float, float] | None:
        """Share of labelled answers that were right, or None without labels."""
        if not self.judged:
            return None
        return self.right[0] / self.judged, self.right[1] / self.judged


class Side(Record, frozen=True):
    """One of the two bundles."""

    model: str
    digest: str
    engine: str
    state_bytes: int
    precision: str = ""  # name of its plan


class DriftReport(Record, frozen=True, kw_only=True):
    """A candidate beside its float model, each in closed loop on its own state."""

    reference: Side  # the float model
    candidate: Side  # what is judged
    episodes: tuple[str, ...]  # names of what they were stepped through
    total: Point  # all steps of all episodes
    milestones: tuple[Point, ...]  # at 1, 10, 100, ... steps and at the last
    samples: tuple[Point, ...]  # the same and more between, for plots
    tensors: dict[str, float]  # largest error of each output and state
    gates: dict[str, tuple[int, ...]]  # flips of each element of each gate
    # steps in which an output of one number was above 0.5 on one side alone: what a detector
    # would have decided otherwise. By output name
    halved: dict[str, int]
    not_compared: dict[str, str]  # states and gates that have no counterpart, with the reason
    # step of the first differing decision, counted from 0, and its episode
    first_flip: tuple[int, str] | None
    # the same of the first output error above ``limits.diverged_above``
    first_divergence: tuple[int, str] | None
    fault: str | None  # what stopped the candidate, or None
    limits: DriftLimits  # what the figures were held against
    findings: tuple[str, ...] = ()  # limits that were broken, one sentence each
    warm_up: WarmUp | None = None  # of the candidate after a reset; None where it was not measured

    @property
    def passed(self) -> bool:
        """Whether every limit was kept and nothing failed."""
        return not self.findings

    def may_be_sealed(self, accept: str | None = None) -> bool:
        """Whether it passed, or somebody takes it; what failed is taken by nobody."""
        return self.fault is None and (self.passed or accept is not None)

    def save(self, path: str | Path) -> None:
        """Write the report: as a page where the name ends in .html, as data where in .json.

        Raises:
            ResultError: The name has another suffix, or nothing can be written there.
        """
        path = Path(path)
        if path.suffix == ".json":
            write_whole(path, canonical_json(self))
        elif path.suffix == ".html":
            write_whole(path, self._page().encode())
        else:
            raise ResultError(
                "a drift report is a page or data", found=path, expected="a name in .html or .json"
            )

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style leaves the notebook alone."""
        return f'<iframe srcdoc="{escape(self._page())}" width="100%" height="640"></iframe>'

    def _page(self) -> str:
        from stategate.calibration.drift.page import page  # plots need matplotlib

        return page(self)

    def measured(self) -> tuple[tuple[str, float, float | None], ...]:
        """What is judged, its figure, and the limit, None where there is none."""
        total, limits = self.total, self.limits
        rates, accuracies = total.write_rates, total.accuracies
        return (
            ("largest output error", total.output_error, limits.output_error),
            ("mean output error", total.output_error_mean, limits.mean_error),
            ("share of flipped decisions", total.flip_rate, limits.flip_rate),
            ("change of the write rate", abs(rates[1] - rates[0]), limits.write_change),
            ("growth of a state's norm", total.norm_growth, limits.norm_growth),
            (
                "loss of accuracy",
                accuracies[0] - accuracies[1] if accuracies else 0.0,
                limits.accuracy_loss,
            ),
        )

    def judged(self) -> DriftReport:
        """The same with its findings."""
        # Written so that NaN fails.
        broken = [
            f"{what} {value:.3g} is above {limit:g}"
            for what, value, limit in self.measured()
            if limit is not None and not value <= limit
        ]
        broken += [
            f"state {name} has a norm of {norm:.3g}, and is zero in the float model"
            for name, (reference_norm, norm) in self.total.norms.items()
            if self.limits.norm_growth is not None and norm > reference_norm == 0
        ]
        failed = [self.fault] if self.fault is not None else []
        return msgspec.structs.replace(self, findings=(*failed, *broken))
