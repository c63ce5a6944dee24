"""A memory may hide in every place that Python has, and none of them is called verified."""

from __future__ import annotations

import importlib.util
import re
import sys
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stategate.contract.errors import StategateError, UndeclaredStateError
from stategate.export.frontends.references import StatefulReference
from stategate.export.frontends.trace import trace
from stategate.models.lifting.lift import Lifted

pytestmark = pytest.mark.usefixtures("one_thread")


class Where(NamedTuple):
    """A place: how it is made, read and written, how it is named, and how it would be declared."""

    name: str
    init: str = ""
    read: str = ""
    write: str = ""
    before: str = ""
    state: str = ""


WHERE = {
    "buffer": Where(
        r"\bm\b", "self.register_buffer('m', ZERO())", "self.m", "self.m = new", "", "m"
    ),
    "attribute": Where(r"\bm\b", "self.m = ZERO()", "self.m", "self.m = new", "", "m"),
    "private attribute": Where(
        "_Hidden__m", "self.__m = ZERO()", "self.__m", "self.__m = new", "", "_Hidden__m"
    ),
    "object": Where(
        r"box\.m",
        "self.box = Box()",
        "self.box.m",
        "self.box.m = new",
        "class Box:\n    def __init__(self):\n        self.m = ZERO()",
        "box.m",
    ),
    "slots": Where(
        r"box\.m",
        "self.box = Box()",
        "self.box.m",
        "self.box.m = new",
        "class Box:\n    __slots__ = ('m',)\n    def __init__(self):\n        self.m = ZERO()",
        "box.m",
    ),
    "list": Where(
        r"rows\[0\]", "self.rows = [ZERO()]", "self.rows[0]", "self.rows[0] = new", "", "rows"
    ),
    "dict": Where(
        r"mem\['m'\]", "self.mem = {'m': ZERO()}", "self.mem['m']", "self.mem['m'] = new", "", "mem"
    ),
    "deque": Where(
        r"past\[0\]",
        "self.past = deque([ZERO()], maxlen=1)",
        "self.past[0]",
        "self.past.append(new)",
        "",
        "past",
    ),
    "nested": Where(
        r"a\['b'\]\[0\]\.m",
        "self.a = {'b': [SimpleNamespace(m=ZERO())]}",
        "self.a['b'][0].m",
        "self.a['b'][0].m = new",
    ),
    "closure": Where(
        "variable m",
        "self.get, self.put = make()",
        "self.get()",
        "self.put(new)",
        "def make():\n    m = ZERO()\n    def get():\n        return m\n"
        "    def put(new):\n        nonlocal m\n        m = new\n    return get, put",
    ),
    "default": Where(
        "default of store",
        "",
        "remember()",
        "remember(new)",
        "def remember(new=None, store=[ZERO()]):\n    if new is not None:\n        store[0] = new\n"
        "    return store[0]",
    ),
    "class": Where(r"Hidden\.m", "type(self).m = ZERO()", "type(self).m", "type(self).m = new"),
    "base class": Where(
        r"Base\.m", "Base.m = ZERO()", "Base.m", "Base.m = new", "class Base:\n    m = None"
    ),
    "global": Where("global M", "", "M", "globals()['M'] = new", "M = ZERO()"),
    "global of a function": Where(
        "global M",
        "",
        "remember()",
        "remember(new)",
        "M = ZERO()\ndef remember(new=None):\n    global M\n"
        "    if new is not None:\n        M = new\n"
        "    return M",
    ),
    "hook": Where(
        "variable m|global M",
        "self.inner = nn.Identity()\nself.inner.register_forward_hook(hook())",
        "self.inner(x)[1]",
        "",
        "def hook():\n    m = ZERO()\n    def remember(part, given, result):\n        nonlocal m\n"
        "        old, x = m, result\n        m = UPDATE\n        return x, old\n"
        "    return remember",
    ),
    "generator": Where(
        "gen",
        "self.gen = remember()\nnext(self.gen)",
        "self.gen.send(x)",
        "",
        "def remember():\n    old = ZERO()\n"
        "    while True:\n        x = yield old\n        old = UPDATE",
    ),
    "cached property": Where(
        r"store",
        "",
        "self.store[0]",
        "self.store[0] = new",
        "",
    ),
    "partial": Where(
        "f",
        "self.f = partial(remember, [ZERO()])",
        "self.f()",
        "self.f(new)",
        "def remember(store, new=None):\n    if new is not None:\n        store[0] = new\n"
        "    return store[0]",
    ),
    "lru_cache": Where(
        "store",
        "",
        "store()[0]",
        "store()[0] = new",
        "@lru_cache\ndef store():\n    return [ZERO()]",
    ),
    "context variable": Where(
        "global M", "", "M.get()", "M.set(new)", "M = ContextVar('m')\nM.set(ZERO())"
    ),
    "thread": Where(r"global M\.m", "", "M.m", "M.m = new", "M = threading.local()\nM.m = ZERO()"),
    "function": Where(
        r"remember\.m",
        "",
        "remember.m",
        "remember.m = new",
        "def remember(): ...\nremember.m = ZERO()",
    ),
    "instance method": Where(
        r"other\.m|box",
        "self.remember = Other().remember",
        "self.remember()",
        "self.remember(new)",
        "class Other:\n    def __init__(self):\n        self.box = ZERO()\n"
        "    def remember(self, new=None):\n"
        "        if new is not None:\n            self.box = new\n"
        "        return self.box",
    ),
    "list of iterator": Where(
        "rows", "self.rows = cycle([[ZERO()]])", "(store := next(self.rows))[0]", "store[0] = new"
    ),
}
PLACES_IN_PLACE = sorted(set(WHERE) - {"hook", "generator"})
DTYPES = {"float32": "0.0", "float64": "0.0", "int64": "0", "bool": "False"}
TRIGGERS = {
    "always": {
        "bool": "old ^ (x > 0)",
        "int64": "old + (x > 0)",
        "": "0.9 * old + x.to(old.dtype)",
    },
    "beyond a threshold": {
        "bool": "old | (x.abs() > 50.0)",
        "int64": "old + (x.abs() > 50.0)",
        "": "torch.where(x.abs() > 50.0, x.to(old.dtype), old)",
    },
    "in the 500th step": {"bool": "old | (self_h > 1e9)", "int64": "old + 1", "": "old + 1.0"},
}
ANSWERS = {
    "always": "self_h + old",
    "beyond a threshold": "torch.where(old != 0, torch.zeros(1, 3), self_h)",
    "in the 500th step": "torch.where(old == 500, torch.zeros(1, 3), self_h)",
}
SOURCE = """
import threading
import torch
from collections import deque
from contextvars import ContextVar
from functools import cached_property, lru_cache, partial
from itertools import cycle
from types import SimpleNamespace
from torch import nn
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.models import lift
from stategate.models.step import StepResult

def ZERO():
    return torch.full((1, 3), {zero}, dtype=torch.{dtype})

{before}

class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 3))
        {init}

    @cached_property
    def store(self):
        return [ZERO()]

    def compute(self, x, self_h):
        old = {read}
        {write}
        self_h = 0.5 * self_h + x
        return {answer}, self_h

    def forward(self, x):
        y, self.h = self.compute(x, self.h)
        return y

    def step_spec(self):
        y, h, x = TensorSpec("y", (1, 3), "{out}"), StateSpec("h", (1, 3)), TensorSpec("x", (1, 3))
        return StepSpec((x,), (y,), (h,))

    def step(self, inputs, states):
        y, h = self.compute(inputs["x"], states["h"])
        return StepResult({{"y": y}}, {{"h": h}}, {{}})

def lifted(states):
    return lift(Hidden(), {{"x": torch.zeros(1, 3)}}, states=states, outputs=["y"])
"""
_NUMBERS = count()


def built(folder: Path, place: str, trigger: str, dtype: str, in_place: bool = False):
    """A file of its own, imported: the user's code."""
    where = WHERE[place]
    update = TRIGGERS[trigger].get(dtype, TRIGGERS[trigger][""])
    write = f"new = {update}\n{where.write}" if where.write else ""
    if in_place:
        write = f"old, kept = old.clone(), old\nnew = {update}\nkept.copy_(new)"
    out = "float64" if dtype == "float64" and trigger == "always" else "float32"
    text = SOURCE.format(
        zero=DTYPES[dtype], dtype=dtype, out=out, answer=ANSWERS[trigger], read=where.read,
        before=where.before.replace("UPDATE", update.replace("self_h", "x")),
        init=where.init.replace("\n", "\n        "), write=write.replace("\n", "\n        "),
    )  # fmt: skip
    name = f"hidden_{next(_NUMBERS)}"
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def refused(make) -> str:
    with pytest.raises(UndeclaredStateError) as problem:
        trace(make())
    return str(problem.value)


@pytest.mark.case("B0", "B14")
@pytest.mark.parametrize("place", WHERE)
def test_a_hidden_memory_is_refused_by_name(place: str, tmp_path: Path) -> None:
    """Though its value does not change on the inputs that a trace is made with."""
    code = built(tmp_path, place, "beyond a threshold", "bool")
    assert re.search(f"found: .*({WHERE[place].name})", refused(lambda: code.lifted(["h"])))
    code = built(tmp_path, place, "beyond a threshold", "bool")
    assert re.search(f"found: .*({WHERE[place].name})", refused(code.Hidden))


@pytest.mark.case("B0", "B14")
@settings(max_examples=40)
@given(
    place=st.sampled_from(sorted(WHERE)),
    trigger=st.sampled_from(sorted(TRIGGERS)),
    dtype=st.sampled_from(sorted(DTYPES)),
    in_place=st.booleans(),
    is_lifted=st.booleans(),
)
def test_no_hidden_memory_is_traced(
    place, trigger, dtype, in_place, is_lifted, tmp_path_factory
) -> None:
    in_place = in_place and place in PLACES_IN_PLACE
    code = built(tmp_path_factory.mktemp("m"), place, trigger, dtype, in_place)
    said = refused(lambda: code.lifted(["h"]) if is_lifted else code.Hidden())
    assert re.search(f"found: .*({WHERE[place].name})", said)


def twin_agrees(step: Lifted) -> None:
    """The lifted step and the untouched module on inputs that trip what can be tripped."""
    alone, states = StatefulReference(step), step.initial_states()
    stream = torch.randn(12, 1, 3, generator=torch.Generator().manual_seed(0))
    stream[5] *= 100.0
    for x in stream:
        result = step.step({"x": x}, states)
        states = result.states
        outputs, after, _ = alone.step({"x": x.numpy()})
        np.testing.assert_array_equal(result.outputs["y"].numpy(), outputs["y"])
        for name in after:
            np.testing.assert_array_equal(states[name].numpy(), after[name])


DECLARABLE = [place for place, where in WHERE.items() if where.state]


@pytest.mark.slow
@pytest.mark.case("B0")
@torch.no_grad()
@settings(max_examples=4)
@given(
    place=st.sampled_from(DECLARABLE),
    trigger=st.sampled_from(sorted(TRIGGERS)),
    dtype=st.sampled_from(sorted(DTYPES)),
    in_place=st.booleans(),
)
def test_its_twin_that_declares_it_passes(
    place, trigger, dtype, in_place, tmp_path_factory
) -> None:
    code = built(tmp_path_factory.mktemp("m"), place, trigger, dtype, in_place)
    step = code.lifted(["h", WHERE[place].state])
    twin_agrees(step)
    trace(step)


@pytest.mark.slow
@pytest.mark.parametrize("place", DECLARABLE)
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_twin_is_sealed(place, trigger, dtype, tmp_path: Path, seal_model) -> None:
    code = built(tmp_path, place, trigger, dtype)
    seal_model(tmp_path / "b", code.lifted(["h", WHERE[place].state]))


@pytest.mark.slow
@pytest.mark.parametrize("place", WHERE)
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_every_hidden_memory_is_refused(place, trigger, dtype, in_place, tmp_path: Path) -> None:
    if in_place and place not in PLACES_IN_PLACE:
        pytest.skip("this place is not reached by a reference to its tensor")
    code = built(tmp_path, place, trigger, dtype, in_place)
    said = refused(lambda: code.lifted(["h"]))
    assert re.search(f"found: .*({WHERE[place].name})", said)


class Idle(nn.Module):
    """A sound memory; subclasses assign something that decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 3))
        self.register_buffer("kept", torch.zeros(1, 3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.seen: torch.Tensor | None = None
        self.debug: dict[str, torch.Tensor] = {}
        self.calls, self.seconds, self.warned = 0, 0.0, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = 0.5 * self.h + x
        return self.h + self.idle(x)

    def idle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def step_spec(self):
        from stategate.contract import StateSpec, StepSpec, TensorSpec

        x, y, h = TensorSpec("x", (1, 3)), TensorSpec("y", (1, 3)), StateSpec("g", (1, 3))
        return StepSpec((x,), (y,), (h,))

    def step(self, inputs, states):
        from stategate.models.step import StepResult

        g = 0.5 * states["g"] + inputs["x"]
        return StepResult({"y": g + self.idle(inputs["x"])}, {"g": g}, {})


class KeepsAMap(Idle):
    def idle(self, x):
        self.seen = torch.softmax(x, -1)
        return self.seen * 2.0


class KeepsABuffer(Idle):
    def idle(self, x):
        self.kept = x * 3.0
        self.kept.mul_(2.0)
        return self.kept


class FillsABuffer(Idle):
    def idle(self, x):
        self.kept.copy_(x)
        return self.kept + 1.0


class KeepsADict(Idle):
    def idle(self, x):
        self.debug["x"] = x + 1.0
        return x


class Counts(Idle):
    def idle(self, x):
        self.calls += 1
        self.seconds = self.seconds + 0.1 * self.calls
        self.steps += 1
        return x


class Warns(Idle):
    def idle(self, x):
        if not self.warned:
            self.warned = True
        return x


class BuildsATable(Idle):
    def idle(self, x):
        if self.seen is None:
            self.seen = torch.arange(3, dtype=torch.float32)[None]
        return x * self.seen


def table(n: int, known: dict = {}) -> torch.Tensor:  # noqa: B006
    if n not in known:
        known[n] = torch.arange(n, dtype=torch.float32)[None]
    return known[n]


class KeepsATable(Idle):
    def idle(self, x):
        return x * table(3)


IDLE = [KeepsAMap, KeepsABuffer, FillsABuffer, KeepsADict, Counts, Warns, BuildsATable, KeepsATable]


@pytest.mark.corners("KeepsABuffer", "Counts")
@pytest.mark.case("B0")
@pytest.mark.parametrize("kind", IDLE)
def test_what_is_assigned_and_decides_nothing_is_no_memory(kind, tmp_path, seal_model) -> None:
    from stategate.models import lift

    seal_model(tmp_path / "l", lift(kind(), {"x": torch.zeros(1, 3)}, states=["h"], outputs=["y"]))
    trace(kind())


@pytest.mark.case("B0")
@pytest.mark.parametrize(
    "idle",
    [
        lambda self, x: x if self.calls == 500 else x * 1.0,
        lambda self, x: x * float(self.calls > 500),
        lambda self, x: [x, -x][self.calls % 2],
        lambda self, x: x + torch.full((1,), float(self.calls)),
    ],
)
def test_a_count_that_decides_something_is_a_memory(idle) -> None:
    class Decides(Idle):
        def idle(self, x):
            self.calls += 1
            return idle(self, x)

    assert "found: calls" in refused(Decides)


@pytest.mark.case("B14")
def test_what_cannot_be_reached_is_found_by_its_answers(tmp_path: Path) -> None:
    file = tmp_path / "memory.txt"
    file.write_text("0")

    class OnDisk(Idle):
        def idle(self, x):
            n = int(file.read_text()) + 1
            file.write_text(str(n))
            return x * n

    class Dice(Idle):
        def idle(self, x):
            return x + torch.rand(1, 3)

    assert "found: something that cannot be reached" in refused(OnDisk)
    assert "found: random numbers" in refused(Dice)


@pytest.mark.case("B14")
def test_a_part_that_cannot_be_copied_is_named() -> None:
    from stategate.models import lift

    module = Idle()
    module.file = Path(__file__).open()  # noqa: SIM115
    with module.file, pytest.raises(StategateError, match=r"found: file: TextIOWrapper"):
        lift(module, {"x": torch.zeros(1, 3)}, states=["h"])
