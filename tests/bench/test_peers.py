"""The race with the peers that are at hand; what is not installed is listed, as it would be."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stategate.bench.peers import aura_c, aura_numpy, aura_torch, onnx_runtime
from stategate.bench.peers.growing import attend, measure
from stategate.bench.peers.race import Entry, Race, race
from stategate.bench.subject import Subject, parity
from stategate.contract import Bundle
from stategate.contract.errors import MeasurementError
from stategate.runtime.cli import main

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is here")


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


@needs_compiler
@pytest.mark.parametrize("maker", [aura_c.open_peer, aura_numpy.open_peer, aura_torch.open_peer])
def test_a_step_written_by_hand_answers_like_the_model(aura_bundle: Path, maker) -> None:
    subject: Subject = maker(str(aura_bundle))
    error = parity(Bundle.open(aura_bundle), subject)
    assert error is not None and error < 1e-5


@pytest.mark.parametrize("bound", [False, True])
def test_plain_onnx_runtime_answers_like_the_model_either_way(
    aura_bundle: Path, bound: bool
) -> None:
    error = parity(Bundle.open(aura_bundle), onnx_runtime.open_peer(str(aura_bundle), bound))
    assert error is not None and error < 1e-5


@needs_compiler
def test_the_loop_in_c_steps_as_often_as_the_calls_from_python(aura_bundle: Path) -> None:
    golden = Bundle.open(aura_bundle).golden()
    assert golden is not None
    feeds = list(golden)
    called, looped = (aura_c.open_peer(str(aura_bundle), loop) for loop in (False, True))
    for feed in feeds[:100]:
        last = called.step(feed)["action"].copy()
    ns = np.zeros(99, np.uint32)
    assert called.bulk is None and looped.bulk is not None
    looped.bulk(feeds, 0, ns)
    np.testing.assert_array_equal(looped.step(feeds[99])["action"], last)
    assert (ns > 0).all()


def test_a_step_written_for_one_model_refuses_another(tiny_bundle: Path) -> None:
    with pytest.raises(MeasurementError, match="by hand for AURA-Mem"):
        aura_numpy.open_peer(str(tiny_bundle))


def test_attention_over_the_cache_is_that_of_torch() -> None:
    rng = np.random.default_rng(1)
    shapes = ((9, 32), (9, 32), 32)
    keys, values, query = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(a.reshape(1, -1, 32)) for a in (query, keys, values)), scale=1.0
    )
    np.testing.assert_allclose(attend(keys, values, query), wanted.numpy()[0, 0], rtol=1e-5)


def test_the_cache_is_looked_at_at_every_length() -> None:
    assert [found.count for found in measure(4, (5, 50), repeats=7)] == [7, 7]


@pytest.fixture(scope="module")
def raced(aura_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Race:
    """A short race: one that runs, and five that each fail in a way of their own."""
    envs = tmp_path_factory.mktemp("peers")
    (envs / "refused").mkdir()
    (envs / "refused" / "error.txt").write_text("ERROR: no matching distribution\n")
    here = Path(__file__).stem
    peers = (
        Entry("numpy", "stategate.bench.peers.aura_numpy:open_peer"),
        Entry("wrong", f"{here}:Wrong"),
        Entry("dying", f"{here}:Dying"),
        Entry("absent", "stategate.bench.peers.openvino_stateful:open_peer"),
        Entry("refused", "no:matter", env="refused"),
        Entry("unmade", "no:matter", env="unmade"),
    )
    with pytest.MonkeyPatch.context() as patch:
        path = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([path, *sys.path]))
        return race(aura_bundle, envs, 3, None, lambda _: None, peers, (10, 20))


def test_who_runs_has_figures_and_who_does_not_has_a_reason(raced: Race) -> None:
    rows = {row.name: row for row in raced.rows}
    numpy_row = rows["numpy"]
    assert numpy_row.error is None and numpy_row.best_p50_us is not None
    assert numpy_row.median_p50_us is not None
    assert numpy_row.best_p50_us <= numpy_row.median_p50_us
    reasons = {
        "wrong": "answers otherwise",
        "dying": "exit code 3",
        "refused": "no matching distribution",
        "unmade": "no environment",
        "stategate, native": "no native engine",
    }
    for name, reason in reasons.items():
        assert reason in (rows[name].error or ""), name
        assert rows[name].best_p50_us is None
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
    assert run(main, ["bench", "peers", str(tmp_path)]).exit_code == 2
    missing = ["bench", "peers", str(tiny_bundle), "--envs", str(tmp_path / "none")]
    assert run(main, missing).exit_code == 2
    assert run(main, ["bench", "peers", str(tiny_bundle), "--rounds", "0"]).exit_code == 2
