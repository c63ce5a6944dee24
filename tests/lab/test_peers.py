"""The race with the peers that are at hand; what is not installed is listed, as it would be."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lab.__main__ import main
from lab.peers import aura_numpy, aura_torch, graph_torch, in_c, onnx_runtime, policies
from lab.peers.bare_engine import EngineSubject
from lab.peers.entries import SHAPES, Entry, entrants
from lab.peers.growing import attend, measure
from lab.peers.race import Race, race
from stategate.bench.measure.driver import Driver
from stategate.bench.measure.subject import parity
from stategate.contract import Bundle
from stategate.contract.errors import MeasurementError, StategateError
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.zoo.makers import GDN2


class Wrong(aura_numpy.AuraNumpy):
    """Answers almost rightly."""

    def step(self, inputs):
        return {"action": super().step(inputs)["action"] * 1.01}


class Dying(aura_numpy.AuraNumpy):
    """Ends its process after a while."""

    steps = 0

    def step(self, inputs):
        self.steps += 1
        if self.steps > 500:
            raise SystemExit(3)
        return super().step(inputs)


class Silent(aura_numpy.AuraNumpy):
    """Never answers."""

    def step(self, inputs):
        time.sleep(600)


@pytest.mark.parametrize(
    "maker",
    [
        in_c.InC,
        partial(in_c.InC, form="rows"),
        partial(in_c.InC, form="rows", held="open"),
        EngineSubject,
        aura_numpy.AuraNumpy,
        partial(aura_torch.AuraTorch, compiled=False),
    ],
)
def test_a_step_around_no_session_answers_like_the_model(native_bundle: Path, maker) -> None:
    subject = maker(str(native_bundle))
    error = parity(Bundle.open(native_bundle), subject)
    assert error is not None and error < 1e-5


@pytest.mark.parametrize("bound", [False, True])
def test_plain_onnx_runtime_answers_like_the_model_either_way(
    aura_bundle: Path, bound: bool
) -> None:
    error = parity(Bundle.open(aura_bundle), onnx_runtime.open_peer(str(aura_bundle), bound))
    assert error is not None and error < 1e-5


@pytest.mark.parametrize("form", ["rows", "generated"])
def test_a_gate_held_open_writes_and_one_held_shut_does_not(
    native_bundle: Path, form: in_c.Form
) -> None:
    golden = Bundle.open(native_bundle).golden()
    assert golden is not None
    feeds, ns = list(golden), np.zeros(100, np.uint32)
    answers = {}
    for held in ("open", "shut"):
        subject = in_c.InC(str(native_bundle), form=form, held=held)
        assert subject.bulk is not None
        subject.bulk(feeds, 0, ns)
        assert (ns > 0).all()
        answers[held] = subject.step(feeds[0])["action"].copy()
    # Nothing was written behind the closed gate: the answer is that of a session that begins.
    np.testing.assert_allclose(answers["shut"], golden.outputs["action"][0], rtol=1e-4, atol=1e-5)
    assert np.abs(answers["open"] - answers["shut"]).max() > 1e-3


@pytest.mark.parametrize("subject", [in_c.InC, EngineSubject])
def test_a_bundle_without_a_native_engine_shows_how_to_get_one(aura_bundle: Path, subject) -> None:
    with pytest.raises(StategateError, match="stategate device build-native"):
        subject(str(aura_bundle))


def test_a_step_written_for_one_model_refuses_another(tiny_bundle: Path) -> None:
    with pytest.raises(MeasurementError, match="by hand for AURA-Mem"):
        aura_numpy.open_peer(str(tiny_bundle))


@pytest.mark.slow
def test_a_graph_in_torch_answers_like_the_model(small_bundle: Path) -> None:
    peer = graph_torch.open_peer(str(small_bundle))
    error = parity(Bundle.open(small_bundle), peer)
    assert error is not None and error < 1e-5


def test_an_operator_that_is_not_written_in_torch_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(MeasurementError, match="Tanh"):
        graph_torch.open_peer(str(tiny_bundle))


def test_who_makes_integers_of_his_own_runs_where_the_float_model_is_given(
    aura_bundle: Path,
) -> None:
    alone, both = (entrants(SHAPES["stack-float32"], source) for source in (None, aura_bundle))
    assert not any(entry.compresses for entry in alone)
    given = [entry for entry in both if entry.more.get("source") == str(aura_bundle)]
    assert given == [entry for entry in both if entry.compresses] != []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["generated", "rows", "eigen"])
@pytest.mark.parametrize("name", ["lstm_64", "gru_64"])
def test_policies_by_hand_answer_like_the_model(
    seal_model: Callable[..., Bundle], tmp_path: Path, name: str, form: in_c.Form
) -> None:
    if form == "eigen" and not Path("/usr/include/eigen3").exists():
        pytest.skip("the headers of Eigen are not installed: make eigen")
    sealed = seal_model(tmp_path / "bundle", getattr(policies, name)(), steps=20, native=True)
    subject = in_c.InC(str(sealed.path), form, policy=name)
    error = parity(sealed, subject)
    assert error is not None and error < 1e-5


def test_attention_over_the_cache_is_that_of_torch() -> None:
    rng = np.random.default_rng(1)
    shapes = ((9, 32), (9, 32), 32)
    keys, values, query = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(a.reshape(1, -1, 32)) for a in (query, keys, values)), scale=1.0
    )
    np.testing.assert_allclose(attend(keys, values, query), wanted.numpy()[0, 0], rtol=1e-5)


def test_the_cache_is_looked_at_at_every_length() -> None:
    found = measure(4, (5, 50), repeats=7)
    assert [(one.steps, one.times.count) for one in found] == [(5, 7), (50, 7)]


@pytest.fixture(scope="module")
def small_bundle(
    seal_model: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The stack of `make bench-native` with fewer layers and channels."""
    model = Stack(StackConfig(16, 4, 1, None, GDN2)).eval()
    return seal_model(tmp_path_factory.mktemp("small") / "bundle", model, steps=20).path


def impatient(bundle: str, *, maker: str, silence_s: float, **more) -> Driver:
    limit_s = silence_s / 1200 if maker.endswith(":Silent") else silence_s
    return Driver(bundle, maker=maker, silence_s=limit_s, **more)


@pytest.fixture(scope="module")
def raced(aura_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Race:
    """A short race: one that runs, and six that each fail in a way of their own."""
    envs = tmp_path_factory.mktemp("peers")
    (envs / "refused").mkdir()
    (envs / "refused" / "error.txt").write_text("ERROR: no matching distribution\n")
    here = Path(__file__).stem
    peers = (
        Entry("numpy", "lab.peers.aura_numpy:open_peer"),
        Entry("wrong", f"{here}:Wrong"),
        Entry("dying", f"{here}:Dying"),
        Entry("silent", f"{here}:Silent"),
        Entry("absent", "lab.peers.openvino_stateful:open_peer"),
        Entry("refused", "no:matter", env="refused"),
        Entry("unmade", "no:matter", env="unmade"),
    )
    with pytest.MonkeyPatch.context() as patch:
        path = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([path, *sys.path]))
        # Only who never answers is waited for briefly: on a slow machine the others take long.
        patch.setattr("lab.peers.race.Driver", impatient)
        return race(aura_bundle, envs, 3, None, lambda _: None, peers, (10, 20), 1200.0)


@pytest.mark.slow
def test_who_runs_has_figures_and_who_does_not_has_a_reason(raced: Race) -> None:
    rows = {row.name: row for row in raced.rows}
    numpy_row = rows["numpy"]
    assert numpy_row.error is None and numpy_row.best_p50_us is not None
    assert numpy_row.median_p50_us is not None
    assert numpy_row.best_p50_us <= numpy_row.median_p50_us
    reasons = {
        "wrong": "answers otherwise",
        "dying": "exit code 3",
        "silent": "silent for 1.0 s",
        "refused": "no matching distribution",
        "unmade": "no environment",
        "stategate, native": "no native engine",
    }
    for name, reason in reasons.items():
        assert reason in (rows[name].error or ""), name
        assert rows[name].best_p50_us is None
    # Our own runtime would step the bundle well, and tell nothing of these.
    assert not any("stategate verify" in (rows[name].error or "") for name in reasons)
    assert rows["absent"].error is not None or rows["absent"].best_p50_us is not None


def test_our_fastest_engine_is_the_unit_of_the_table(raced: Race) -> None:
    ours = next(row for row in raced.rows if row.name == "stategate, onnxruntime")
    assert ours.over_ours == 1.0
    assert [grown.cache_bytes for grown in raced.grown] == [10 * 256, 20 * 256]
    assert raced.state_bytes == 4224


def test_the_command_refuses_what_is_no_bundle_and_an_envs_folder_that_is_not_there(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    run = CliRunner().invoke
    assert run(main, ["peers", str(tmp_path)]).exit_code == 2
    missing = ["peers", str(tiny_bundle), "--envs", str(tmp_path / "none")]
    assert run(main, missing).exit_code == 2
    assert run(main, ["peers", str(tiny_bundle), "--rounds", "0"]).exit_code == 2
