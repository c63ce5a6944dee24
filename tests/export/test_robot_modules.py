"""Modules as roboticists write them: what remembers is named, and what the message says works."""

from __future__ import annotations

import array
import enum
import math
import re
from collections import deque
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract.errors import TraceError, UndeclaredStateError
from stategate.export.frontends.references import StatefulReference
from stategate.export.frontends.trace import trace
from stategate.models import lift
from stategate.models.lifting.lift import Lifted
from stategate.runtime import Session

pytestmark = pytest.mark.usefixtures("one_thread")

X = {"x": torch.zeros(1, 4)}
TICKS = {"ticks": torch.zeros(1, 2, dtype=torch.int64)}


class Late(nn.Module):
    """Turns round after many steps; ``mark`` is where it keeps how many there were."""

    def __init__(self, mark: object) -> None:
        super().__init__()
        self.mark = mark
        self.register_buffer("h", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = 0.9 * self.h + x
        return self.h * (-1.0 if self.is_late() else 1.0)

    def is_late(self) -> bool:
        mark = self.mark
        if isinstance(mark, array.array):
            mark[0] += 1
            return mark[0] > 5000
        if isinstance(mark, (Decimal, Fraction)):
            self.mark = mark + type(mark)(1)
            return self.mark > 5000
        if isinstance(mark, timedelta):
            self.mark = mark + timedelta(seconds=1)
            return self.mark > timedelta(seconds=5000)
        if isinstance(mark, range):
            self.mark = mark[1:]
            return not self.mark
        return next(mark, None) is None  # type: ignore[call-overload,no-any-return]


MARKS = {
    "array": lambda: array.array("i", [0]),
    "Decimal": lambda: Decimal(0),
    "Fraction": lambda: Fraction(0),
    "timedelta": timedelta,
    "range": lambda: range(5000),
    "iterator of a range": lambda: iter(range(5000)),
    "iterator of bytes": lambda: iter(bytes(5000)),
    "iterator of values": lambda: iter(dict.fromkeys(range(5000), 0).values()),
    "reversed": lambda: reversed(range(5000)),
}


@pytest.mark.case("B0")
@pytest.mark.parametrize("kind", MARKS)
def test_what_pythons_own_objects_remember_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UndeclaredStateError, match="mark") as refusal:
        trace(lift(Late(MARKS[kind]()), X, states=["h"]))
    assert "buffer of the module" in str(refusal.value)


class Pressure(nn.Module):
    """No alarm in the first step, whatever the pressure is; a jump is one."""

    def __init__(self) -> None:
        super().__init__()
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = x if self.last is None else self.last
        self.last = x
        return ((x - last).abs() > 6e4).float()


class Encoder(nn.Module):
    """The same of an encoder's ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.last: torch.Tensor | None = None

    def forward(self, ticks: torch.Tensor) -> torch.Tensor:
        last = ticks if self.last is None else self.last
        self.last = ticks
        return ((ticks - last).abs() > 100).float()


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    ("module", "example", "value"), [(Pressure, X, 101325.0), (Encoder, TICKS, 5000)]
)
def test_a_first_step_that_only_large_numbers_show_is_found(module, example, value) -> None:
    step = lift(module(), example, states=["last"])
    assert step.has_first_step
    large = {name: torch.full_like(tensor, value) for name, tensor in example.items()}
    assert not step.step(large, step.initial_states()).outputs["output"].any()


class Clock(nn.Module):
    """A wave at the time that a Python integer counts."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.k, self.how = np.int64(0) if how == "numpy" else 0, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.k += 1
        t = self.k / 500 if self.how == "quotient" else self.k * 0.002
        return x * 0 + torch.sin(torch.ones(1, 4) * (3 * math.pi * t % (2 * math.pi)))


@pytest.mark.case("A7")
@pytest.mark.parametrize("how", ["product", "quotient", "numpy"])
def test_a_clock_of_a_python_integer_is_right_after_days(how, tmp_path: Path, seal_model) -> None:
    with Session.open(
        seal_model(tmp_path / "b", lift(Clock(how), X, states=["k"])).path
    ) as session:
        for k in (10**6, 10**8):
            session.load_state({"k": np.array(k)})
            (answer,) = session.step(x=np.zeros((1, 4), np.float32)).values()
            module = Clock(how)
            module.k = k
            assert answer == pytest.approx(module(X["x"]).numpy(), abs=1e-6)


class Switch(nn.Module):
    """Hysteresis, chosen among booleans."""

    def __init__(self, start: torch.Tensor | None) -> None:
        super().__init__()
        self.on = start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        on = mean > -0.5 if self.on is None else self.on
        self.on = torch.where(mean.abs() > 0.7, mean > 0, on)
        return x * self.on


@pytest.mark.parametrize("start", [torch.zeros(1, 1, dtype=torch.bool), None])
def test_booleans_are_chosen_with_torch_where(start, tmp_path: Path, seal_model) -> None:
    step = lift(Switch(start), X, states=["on"])
    alone = StatefulReference(step)
    with Session.open(seal_model(tmp_path / "b", step).path) as session:
        for x in np.random.default_rng(0).standard_normal((200, 1, 4)).astype(np.float32):
            assert (session.step(x=x)["output"] == alone.step({"x": x})[0]["output"]).all()


class Filter:
    def __init__(self) -> None:
        self.y = torch.zeros(1, 4)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.y = 0.8 * self.y + 0.2 * x
        return self.y


class Filters(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        pair = [Filter(), Filter()]
        self.filters = pair if kind is list else {"a": pair[0], "b 1": pair[1]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.filters if isinstance(self.filters, list) else self.filters.values()
        for each in filters:
            x = each(x)
        return x


class Frames(nn.Module):
    """The last three frames; before there are three, the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: deque[torch.Tensor] = deque(maxlen=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while len(self.frames) < 3:
            self.frames.append(x)
        self.frames.append(x)
        return torch.cat(list(self.frames), -1)


class Mode(enum.Enum):
    WARM = 1
    READY = 2


class Machine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mode = Mode.WARM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.mode.value
        self.mode = Mode.READY
        return y


class Hidden(nn.Module):
    """A module with a memory that is declared, around one with some that are not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("h", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = 0.5 * self.h + x
        return self.inner(self.h)


@pytest.mark.case("B0")
@pytest.mark.parametrize(
    "make",
    [lambda: Filters(list), lambda: Filters(dict), Frames, Machine],
    ids=["list", "dict", "deque", "enum"],
)
def test_the_states_that_a_refusal_offers_can_be_pasted(make, tmp_path: Path, seal_model) -> None:
    with pytest.raises(UndeclaredStateError) as refusal:
        trace(lift(Hidden(make()), X, states=["h"]))
    (states,) = re.findall(r"lift\(\.\.\., states=(\[.*?\])\), also", str(refusal.value))
    step: Lifted = lift(Hidden(make()), X, states=eval(states))
    alone = Hidden(make())
    with Session.open(seal_model(tmp_path / "b", step).path) as session:
        for x in torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(0)):
            answer = session.step(x=x.numpy())["output"]
            assert answer == pytest.approx(alone(x).numpy(), abs=1e-6)


CACHE: dict[str, torch.Tensor] = {}


class Global(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CACHE["h"] = 0.9 * CACHE.get("h", torch.zeros(1, 4)) + x
        return CACHE["h"] * 1.0


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize(("module", "remedy"), [(Global, "buffer of"), (Noise, "as an input")])
def test_the_remedy_is_for_what_was_found_and_not_for_a_cache_that_grows(module, remedy) -> None:
    CACHE.clear()
    with pytest.raises(UndeclaredStateError, match=remedy) as refusal:
        trace(lift(Hidden(module()), X, states=["h"]))
    assert "KV cache" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_computed_anew_in_every_step_is_no_memory(kind: str) -> None:
    norm = getattr(torch.nn.utils, kind)(nn.Linear(4, 4))
    trace(lift(Hidden(norm), X, states=["h"]))


class Scratch(nn.Module):
    """Writes parts of a buffer that stays allocated; ``before`` and ``between`` may read it."""

    def __init__(self, before: str = "", parts: str = "0:4 4:8", between: str = "") -> None:
        super().__init__()
        self.before, self.parts, self.between = before, parts, between
        self.register_buffer("buf", torch.zeros(1, 8))
        self.g = torch.zeros(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.buf.sum() if self.before else 0.0
        for k, part in enumerate(self.parts.split()):
            low, high = map(int, part.split(":"))
            self.buf[:, low:high] = x[:, : high - low]
            if k == 0 and self.between == "add":
                self.g = 0.9 * self.g + x
                self.buf[:, :4].add_(self.g)
            elif k == 0 and self.between == "copy":
                self.buf[:, :4].copy_(self.buf[:, 4:])
        return self.buf[:, :4] + self.buf[:, 4:] + y


@pytest.mark.slow
def test_a_buffer_all_of_which_is_written_part_by_part_is_no_memory() -> None:
    trace(lift(Hidden(Scratch()), X, states=["h"]))


@pytest.mark.case("B0")
@pytest.mark.parametrize(
    "reads",
    [{"before": "sum"}, {"parts": "0:4 5:8"}, {"between": "add"}, {"between": "copy"}],
    ids=str,
)
def test_a_buffer_that_is_read_before_all_of_it_is_written_is_a_memory(reads) -> None:
    with pytest.raises(UndeclaredStateError, match="inner"):
        trace(lift(Hidden(Scratch(**reads)), X, states=["h"]))


class Largest(nn.Module):
    def __init__(self, start: torch.Tensor | None) -> None:
        super().__init__()
        self.best = start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now = x.max(-1, keepdim=True).values
        self.best = now if self.best is None else torch.maximum(now, self.best)
        return self.best * 1.0


def test_a_start_at_infinity_is_taken_and_one_at_nan_is_refused_with_starts_that_work() -> None:
    trace(lift(Largest(torch.full((1, 1), -torch.inf)), X, states=["best"]))
    with pytest.raises(TraceError, match=r"'best' must not start[\s\S]*not finite") as refusal:
        trace(lift(Largest(torch.full((1, 1), torch.nan)), X, states=["best"]))
    said = re.search(r"-torch\.finfo\(torch\.float32\)\.max", str(refusal.value))
    assert said and "from None" in str(refusal.value)
    trace(lift(Largest(torch.full((1, 1), eval(said[0]))), X, states=["best"]))
    trace(lift(Largest(None), X, states=["best"]))
