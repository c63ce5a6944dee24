"""One graph or two: what is chosen, and what is written down about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import SplitError
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from
from stategate.export.inputs import random_episode
from stategate.export.passes import choose_split as ways
from stategate.export.passes.choose_split import choose_layout
from stategate.models.load import LoadedModel, load_model


@pytest.fixture(scope="module")
def aura() -> tuple[Candidate, Episode]:
    loaded = load_model("aura-hard")
    assert loaded.episode is not None
    return candidate_from(loaded), loaded.episode(60, 5)


def test_a_split_is_chosen_where_the_clock_says_so(
    aura: tuple[Candidate, Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    for us, wanted in ((10.0, "read-write"), (40.0, "fused")):
        times = {"step": 30.0, "read": us, "write": 5.0}
        monkeypatch.setattr(ways, "medians_us", lambda graphs, feeds, t=times: t)
        chosen = choose_layout(aura[0], "auto", aura[1], measure=True)
        assert chosen.way is not None and chosen.way.way == wanted
        assert "us measured" in chosen.way.why and "fused 30.0" in chosen.way.why
        assert set(chosen.parts) == ({"read", "write"} if wanted == "read-write" else set())


def test_measuring_takes_every_graph_of_the_candidate(aura: tuple[Candidate, Episode]) -> None:
    chosen = choose_layout(aura[0], "quiet", aura[1], measure=True)
    assert chosen.way is not None and chosen.way.why.startswith("us measured for a step at ")
    assert chosen.way.why.endswith("; asked for") and set(chosen.parts) == {"read"}


def test_an_estimate_counts_the_elements_that_each_way_computes(
    aura: tuple[Candidate, Episode],
) -> None:
    chosen = choose_layout(aura[0], "auto", aura[1], measure=False)
    assert chosen.way is not None and chosen.way.way == "read-write"
    assert "estimated elements" in chosen.way.why and "fused 30,292.0" in chosen.way.why
    again = choose_layout(aura[0], "auto", aura[1], measure=False)
    assert again.parts == chosen.parts and again.way == chosen.way


def test_a_split_that_gives_other_bits_is_not_taken(
    aura: tuple[Candidate, Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(model: onnx.ModelProto, spec: object) -> ways.Split:
        parts = ways.read_write(model, spec)  # type: ignore[arg-type]
        last = next(n for n in parts.read.graph.node if n.op_type == "Sub")
        last.input[0], last.input[1] = last.input[1], last.input[0]
        return parts

    monkeypatch.setitem(ways._SPLITS, "read-write", spoiled)
    with pytest.raises(SplitError, match="do not give the bits of one"):
        choose_layout(aura[0], "read-write", aura[1], measure=False)
    chosen = choose_layout(aura[0], "auto", aura[1], measure=False)
    assert chosen.way is not None and chosen.way.way != "read-write"
    assert "do not give the bits" in chosen.way.why


def test_a_pool_is_stepped_in_one_graph_and_the_manifest_says_why(
    aura: tuple[Candidate, Episode],
) -> None:
    pool = replace(aura[0], sessions=4)
    chosen = choose_layout(pool, "auto", aura[1], measure=False)
    assert chosen.way is not None and chosen.way.way == "fused"
    assert chosen.way.why.startswith("4 sessions in one step")
    with pytest.raises(SplitError, match="for a pool"):
        choose_layout(pool, "read-write", aura[1], measure=False)


def test_a_model_whose_host_decides_alone_is_split_too(tiny_model: type) -> None:
    import msgspec
    import torch

    from stategate.models.step import StepResult

    class HostDecides(tiny_model):  # type: ignore[misc]
        def step_spec(self):  # type: ignore[no-untyped-def]
            spec = super().step_spec()
            gate = msgspec.structs.replace(spec.gates[0], threshold_input=None)
            wide = msgspec.structs.replace(spec.states[0], shape=(1, 8, 4), bytes=0)
            return msgspec.structs.replace(spec, gates=(gate,), states=(wide, spec.states[1]))

        def step(self, inputs: dict, states: dict) -> StepResult:
            new = torch.tanh(self.mix(inputs["x"])).unsqueeze(1)
            return StepResult(
                {"y": states["h"].sum(1)},
                {"h": 0.5 * states["h"] + new, "count": states["count"] + 1.0},
                {"gate": inputs["x"][:, :1]},
            )

    model = HostDecides()
    candidate = candidate_from(LoadedModel("host", "custom", "tests", model, model, None))
    chosen = choose_layout(
        candidate, "read-write", random_episode(candidate.spec, 30), measure=False
    )
    # No quiet step needs the new value: the write computes all of it, from the input.
    operators = {n.op_type for n in onnx.load_model_from_string(chosen.parts["write"]).graph.node}
    assert "Tanh" in operators
    read = {n.op_type for n in onnx.load_model_from_string(chosen.parts["read"]).graph.node}
    assert "Tanh" not in read


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gru", "--split", "read-write"], "no state that a hard gate guards"),
        (["aura-hard", "--sessions", "2", "--split", "quiet"], "a step for a pool"),
        (["aura-hard", "--split", "both"], "is not one of"),
    ],
)
def test_a_way_that_cannot_be_is_refused_and_nothing_is_written(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    result = CliRunner().invoke(main, ["export", *arguments, "--steps", "3", "--out", str(out)])
    assert result.exit_code == 2 and said in result.output
    assert not out.exists()


@pytest.mark.slow
def test_inspect_and_the_manifest_tell_the_way_and_the_reason(tmp_path: Path) -> None:
    run, out = CliRunner(), str(tmp_path / "b")
    arguments = ["export", "aura-hard", "--split", "read-write", "--steps", "20", "--out", out]
    assert run.invoke(main, [*arguments, "--precision", "int8-weights"]).exit_code == 0
    shown = run.invoke(main, ["inspect", out]).output
    assert "read-write, 260 bytes handed over: us measured" in shown
    assert json.loads(run.invoke(main, ["inspect", out, "--json"]).output)["way"]["payload"]
    assert Bundle.open(out).manifest.step_graph.precision == "int8-weights"
    assert "output error in one graph" in run.invoke(main, ["verify", out]).output
