"""Models that compute in other numbers than float32: what they are held to, and what is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import ExportError, GraphError, SpecError, TraceError
from stategate.contract.precision import PRESETS
from stategate.export.candidates import candidate_from
from stategate.export.frontends.trace import as_module
from stategate.export.frontends.untrusted import unoptimised
from stategate.export.precision import in_precision
from stategate.export.seal.rounding import own_rounding, strict_limits
from stategate.models import lift
from stategate.models.load import LoadedModel

CASES = Path(__file__).parents[1] / "cases" / "models.py"


class Sum(nn.Module):
    """Adds its input to what it has; in float16 every sum is rounded."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("s", torch.zeros(1, 2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.s = 0.5 * self.s + x
        return self.s * 3


def loaded(dtype: torch.dtype) -> LoadedModel:
    lifted = lift(Sum(dtype), {"x": torch.zeros(1, 2, dtype=dtype)}, states=["s"], outputs=["y"])
    return LoadedModel("sum", "custom", "tests", lifted, lifted, None)


def episode(dtype: str, steps: int = 60) -> Episode:
    rng = np.random.default_rng(5)
    return Episode({"x": rng.standard_normal((steps, 1, 2)).astype(dtype)})


@pytest.mark.slow
@pytest.mark.case("C6")
def test_a_model_in_float16_is_exported_within_what_float16_rounds_away(tmp_path: Path) -> None:
    args = ["export", f"{CASES}:half_policy", "--out", str(tmp_path / "b"), "--steps", "200"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert "computes in float16" in result.output
    receipt = Bundle.open(tmp_path / "b").manifest.verification
    assert receipt is not None and receipt.tolerance is not None
    # One rounding of float16 is 2**-11 of a number's size.
    assert 2**-11 < receipt.tolerance <= 0.02


def test_the_rounding_of_a_model_is_its_distance_from_the_same_loop_in_float64() -> None:
    inputs = episode("float16")
    s, exact, worst, largest = np.zeros((1, 2), np.float16), np.zeros((1, 2)), 0.0, 0.0
    for x in inputs.inputs["x"]:
        s = (np.float16(0.5) * s + x).astype(np.float16)
        exact = 0.5 * exact + x.astype(np.float64)
        worst = max(worst, float(np.abs(s - exact).max()))
        largest = max(largest, float(np.abs(s).max()))
    own = own_rounding(loaded(torch.float16).model, {}, inputs)
    # Outputs are rounded once more, by at most 2**-11 of their size.
    assert 0.99 * worst / largest <= own <= worst / largest + 2**-10


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("float64", 1e-12)])
def test_wider_numbers_are_held_to_tighter_limits(dtype: str, limit: float) -> None:
    model = loaded(getattr(torch, dtype))
    assert 0 < strict_limits(model.model, candidate_from(model), episode(dtype)).error <= limit


class HiddenHalf(nn.Module):
    """float32 on the outside; what it casts by itself is widened in the comparison."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.float16):
            h = self.cell(x, h)
        return 2 * h.float(), h.float()


def hidden_half() -> nn.Module:
    return lift(
        HiddenHalf(),
        {"x": torch.zeros(1, 3)},
        hidden={"h": torch.zeros(1, 4)},
        returns=["y", "h"],
    )


@pytest.mark.slow
def test_float16_inside_of_a_model_is_seen_too(tmp_path: Path) -> None:
    args = [f"{__file__}:hidden_half", "--out", str(tmp_path / "b"), "--steps", "100"]
    result = CliRunner().invoke(main, ["export", *args])
    assert result.exit_code == 0, result.output
    assert "computes in float16" in result.output


@pytest.mark.slow
def test_the_limit_of_float16_never_hides_a_forgotten_memory() -> None:
    """A model that rounds badly is held to two hundredths, however far it is from float32."""

    class Stalls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("s", torch.zeros(1, 2, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            self.s = self.s + x.abs() * 0.001 + 0.001
            return self.s * 1

    lifted = lift(Stalls(), {"x": torch.zeros(1, 2).half()}, states=["s"], outputs=["y"])
    model = LoadedModel("stalls", "custom", "tests", lifted, lifted, None)
    limits = strict_limits(model.model, candidate_from(model), episode("float16", 4000))
    assert limits.error == 0.02


def narrow(dtype: torch.dtype) -> nn.Module:
    """A projection before the memory, so that every preset has something to quantise."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.into, self.out = nn.Linear(32, 64), nn.Linear(64, 32)
            self.register_buffer("s", torch.zeros(1, 64))

        def forward(self, x: Tensor) -> Tensor:
            self.s = 0.5 * self.s + torch.tanh(self.into(x))
            return self.out(self.s)

    module = Projected().to(dtype)
    return lift(module, {"x": torch.zeros(1, 32, dtype=dtype)}, states=["s"], outputs=["y"])


@pytest.mark.case("C7")
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_weights_of_other_types_become_smaller_and_are_read_in_their_own(dtype: str) -> None:
    model = narrow(getattr(torch, dtype))
    candidate = candidate_from(LoadedModel("m", "custom", "tests", model, model, None))
    feeds = {n: np.full(t.shape, 0.5, t.dtype) for n, t in candidate.spec.graph_inputs().items()}
    smaller = [in_precision(candidate, PRESETS["int8-weights"])]
    if dtype == "float64":
        smaller.append(in_precision(candidate, PRESETS["float16-weights"]))
    answers = [unoptimised(c.graph).run(["y"], feeds)[0] for c in (candidate, *smaller)]
    assert {str(answer.dtype) for answer in answers} == {dtype}
    for answer, other in zip(answers[1:], smaller, strict=True):
        assert len(other.graph) < 0.8 * len(candidate.graph)
        assert 0 < np.abs(answer - answers[0]).max() < 0.01
    with pytest.raises(ExportError, match=r"matrix in float32 [\s\S]* or in int8-weights"):
        in_precision(candidate, PRESETS["int4-weights"])


def narrow32() -> nn.Module:
    return narrow(torch.float32)


@pytest.mark.case("C7")
@pytest.mark.parametrize(("preset", "share"), [("float16-weights", 0.5), ("int8-weights", 0.3)])
def test_a_preset_says_how_many_weights_became_smaller(
    preset: str, share: float, tmp_path: Path
) -> None:
    args = [f"{__file__}:narrow32", "--precision", preset, "--steps", "5"]
    result = CliRunner().invoke(main, ["export", *args, "--out", str(tmp_path / "b")])
    told = re.search(r"2 of 2 projections in .*, ([\d,]+) bytes .* become ([\d,]+)", result.output)
    assert told is not None, result.output
    before, after = (int(part.replace(",", "")) for part in told.groups())
    assert before >= 4 * (32 * 64 * 2 + 96) and after < (share + 0.1) * before


def test_a_plan_that_makes_weights_larger_is_refused_with_the_figures() -> None:
    class Thin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(1, 64, bias=False)  # a scale for each single weight
            self.register_buffer("s", torch.zeros(1, 64))

        def forward(self, x: Tensor) -> Tensor:
            self.s = 0.5 * self.s + self.into(x)
            return self.s * 2

    model = lift(Thin(), {"x": torch.zeros(1, 1)}, states=["s"], outputs=["y"])
    candidate = candidate_from(LoadedModel("m", "custom", "tests", model, model, None))
    with pytest.raises(ExportError, match="makes nothing smaller"):
        in_precision(candidate, PRESETS["int8-weights"])


class Cell(nn.Module):
    """A policy whose numbers are chosen by the test."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.net = (nn.GRU(6, 8) if kind == "gru64" else nn.GRUCell(6, 8)).eval()
        if kind != "autocast":
            self.net.to({"gru64": torch.float64}.get(kind, torch.bfloat16))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = nn.functional.linear(self.net(x, h), torch.eye(8)).float()
        elif self.kind == "gru64":
            h = self.net(x[None], h[None])[1][0]
        else:
            h = self.net(x.bfloat16(), h.bfloat16()).float()
        return h * 2, h


@pytest.mark.case("B17")
@pytest.mark.parametrize(
    ("kind", "named"), [("inside", "bfloat16"), ("autocast", "bfloat16"), ("gru64", "float64")]
)
def test_numbers_that_the_engine_does_not_take_are_named_with_a_remedy(
    kind: str, named: str
) -> None:
    dtype = torch.float64 if kind == "gru64" else torch.float32
    x, h = torch.zeros(1, 6, dtype=dtype), torch.zeros(1, 8, dtype=dtype)
    step = lift(Cell(kind), {"x": x}, hidden={"h": h}, returns=["y", "h"])
    with pytest.raises(GraphError, match=rf"in {named}[\s\S]*module.float\(\)"):
        candidate_from(LoadedModel("m", "custom", "tests", step, step, None))


def test_the_remedy_for_float64_works() -> None:
    step = lift(
        Cell("gru64").float(),
        {"x": torch.zeros(1, 6)},
        hidden={"h": torch.zeros(1, 8)},
        returns=["y", "h"],
    )
    assert candidate_from(LoadedModel("m", "custom", "tests", step, step, None)).spec.states


@pytest.mark.case("B17")
def test_inputs_in_bfloat16_are_answered_with_a_remedy() -> None:
    x = torch.zeros(1, 2, dtype=torch.bfloat16)
    with pytest.raises(SpecError, match=r"bfloat16[\s\S]*module.float\(\)"):
        lift(Sum(torch.bfloat16), {"x": x}, states=["s"], outputs=["y"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_modules_that_torch_quantised_are_named() -> None:
    step = narrow(torch.float32)
    packed = torch.ao.quantization.quantize_dynamic(step.lifted, {nn.Linear}, dtype=torch.qint8)
    step = lift(packed, {"x": torch.zeros(1, 32)}, states=["s"], outputs=["y"])
    with pytest.raises(TraceError, match=r"lifted.into[\s\S]*--precision int8-weights"):
        candidate_from(LoadedModel("m", "custom", "tests", step, step, None))


class Tagged(Tensor):
    """Stands for a weight of torchao: a tensor of another class."""


Tagged.__module__ = "torchao.dtypes"


def test_weights_of_torchao_are_known_by_their_class() -> None:
    class Fake(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))
            self.register_buffer("s", torch.zeros(1, 2))

        def forward(self, x: Tensor) -> Tensor:
            self.s = 0.5 * self.s + x @ self.w
            return self.s * 2

    step = lift(Fake(), {"x": torch.zeros(1, 2)}, states=["s"], outputs=["y"])
    as_module(step)
    step.lifted.w = nn.Parameter(torch.ones(2, 2).as_subclass(Tagged), requires_grad=False)
    with pytest.raises(TraceError, match="quantised modules"):
        as_module(step)
