"""The controlled benchmark's pictures, from its rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from matplotlib.axes import Axes

from lab.evidence.controlled.rows import Row, shown
from lab.evidence.controlled.streams import INTERFERENCE, SESSIONS
from lab.evidence.pages import COLOURS

# As many as there are colours.
_OVER_HORIZONS = (
    "longer", "always-longer", "gated-delta", "linear-attention", "rwkv7", "cache", "mingru-1056",
    "random",
)  # fmt: skip
_OVER_SESSIONS = (
    "longer", "always-longer", "gated-delta", "linear-attention", "mlstm", "rwkv7", "trim-kv",
    "cache",
)  # fmt: skip
_BY_WRITES = (
    "longer", "learned", "always", "gated-delta", "reconstruction", "surprise", "random",
    "periodic",
)  # fmt: skip


def over_horizons(rows: Sequence[Row]) -> Callable[[Axes], None]:
    """Errors against the horizon."""

    def draw(axes: Axes) -> None:
        lines = shown(rows, _OVER_HORIZONS)
        for (name, of), colour, marker in zip(lines, COLOURS, _MARKERS, strict=False):
            steps = [at.steps for at in of[0].at]
            wrong = [_wrong(fmean(row.at[i].accuracy for row in of)) for i in range(len(steps))]
            axes.plot(
                steps, wrong, marker=marker, color=colour, ms=5, label=f"{name} (n={len(of)})"
            )
            for row in of:
                axes.plot(steps, [_wrong(at.accuracy) for at in row.at], ".", color=colour, ms=3)
        axes.set(xscale="log", xlabel="steps from an empty memory")
        _finish(axes)

    return draw


def by_writes(rows: Sequence[Row]) -> Callable[[Axes], None]:
    """Errors against writes."""

    def draw(axes: Axes) -> None:
        lines = shown(rows, _BY_WRITES)
        for (name, of), colour, marker in zip(lines, COLOURS, _MARKERS, strict=False):
            points = [at for row in of if (at := row.up_to(16_384)) is not None]
            x, y = [1000 / at.ratio for at in points], [_wrong(at.accuracy) for at in points]
            axes.scatter(x, y, 30, color=colour, marker=marker, label=f"{name} (n={len(of)})")
        axes.set(xscale="log", xlim=(90, 1150), xlabel="writes in 1,000 steps, by the ledger")
        ticks = (100, 125, 200, 500, 1000)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        _finish(axes)

    return draw


def over_sessions(rows: Sequence[Row]) -> Callable[[Axes], None]:
    """Right answers against the sessions since the lesson."""

    def draw(axes: Axes) -> None:
        lines = shown(rows, _OVER_SESSIONS, INTERFERENCE)
        for (name, of), colour, marker in zip(lines, COLOURS, _MARKERS, strict=False):
            right = [100 * fmean(row.at[k].accuracy for row in of) for k in SESSIONS]
            axes.plot(
                SESSIONS, right, marker=marker, color=colour, ms=5, label=f"{name} (n={len(of)})"
            )
            for row in of:
                axes.plot(SESSIONS, [100 * at.accuracy for at in row.at], ".", color=colour, ms=3)
        axes.axhline(12.5, color="#999999", ls=":", lw=1)
        axes.set(xlabel="sessions of 256 steps since the lesson", ylim=(0, 103))
        axes.set(ylabel="% of questions answered rightly; dotted: chance")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw


_MARKERS = "os^Dv<>P"
_LEAST_WRONG = 0.01  # a share of zero has no place on a logarithmic axis


def _wrong(accuracy: float) -> float:
    return max(_LEAST_WRONG, 100 * (1 - accuracy))


def _finish(axes: Axes) -> None:
    ticks = (0.01, 0.1, 1, 10, 87.5)
    axes.axhline(87.5, color="#999999", ls=":", lw=1)
    axes.set(yscale="log", ylim=(0.008, 120), ylabel="% of queries answered wrongly")
    axes.set_yticks(ticks, ["0.01 or none", "0.1", "1", "10", "87.5, chance"])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
