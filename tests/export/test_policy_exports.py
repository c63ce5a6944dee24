"""Policies as rsl-rl writes them to ONNX, adopted as they are."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tensordict import TensorDict

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.runtime import Session

OBS, ACTIONS, HIDDEN, LAYERS = 9, 4, 24, 2


def policy(kind: str) -> torch.nn.Module:
    from rsl_rl.models.rnn_model import RNNModel

    torch.manual_seed(7)
    seen = TensorDict({"policy": torch.randn(1, OBS)}, batch_size=[1])
    model = RNNModel(
        seen,
        {"actor": ["policy"]},
        "actor",
        ACTIONS,
        hidden_dims=(16,),
        obs_normalization=True,
        distribution_cfg={"class_name": "GaussianDistribution", "init_std": 0.5},
        rnn_type=kind,
        rnn_hidden_dim=HIDDEN,
        rnn_num_layers=LAYERS,
    )
    for _ in range(5):  # a normalizer that has seen something
        seen = {"policy": 3.0 + 2.0 * torch.randn(64, OBS)}
        model.update_normalization(TensorDict(seen, batch_size=[64]))
    return model.eval()


def write_onnx(model: torch.nn.Module, folder: Path) -> Path:
    """By the package's own runner, which needs no more of itself for this than the policy."""
    from rsl_rl.runners import OnPolicyRunner

    runner = SimpleNamespace(alg=SimpleNamespace(get_policy=lambda: model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        OnPolicyRunner.export_policy_to_onnx(runner, str(folder))
    return folder / "policy.onnx"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "states"), [("lstm", {"h_in": "h_out", "c_in": "c_out"}), ("gru", {"h_in": "h_out"})]
)
def test_a_recurrent_policy_of_rsl_rl_acts_as_in_the_package(
    kind: str, states: dict[str, str], tmp_path: Path
) -> None:
    model = policy(kind)
    out = tmp_path / "bundle"
    arguments = ["adopt", str(write_onnx(model, tmp_path)), "--yes", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(out).manifest
    assert {s.name: s.next_name for s in manifest.states} == states
    assert manifest.state_bytes == len(states) * LAYERS * HIDDEN * 4
    rng = np.random.default_rng(8)
    with Session.open(out) as session, torch.no_grad():
        for t in range(200):
            obs = (3.0 + 2.0 * rng.standard_normal((1, OBS))).astype(np.float32)
            seen = TensorDict({"policy": torch.from_numpy(obs)}, batch_size=[1])
            wanted = model(seen).numpy()
            np.testing.assert_allclose(session.step(obs=obs)["actions"], wanted, atol=2e-6)
            if t == 100:  # an episode ends
                model.reset()
                session.reset()
