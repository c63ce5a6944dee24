from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract.errors import SpecError
from stategate.models.memories.recurrent.cell import MinGru, RecurrentStep
from stategate.models.memories.recurrent.config import RecurrentConfig
from stategate.models.step import StepResult, commit, initial_states, threshold_inputs
from stategate.runtime import Session

TOKENS = 80
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose gates take all values, not only those around one half."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = make()
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(3.0)
    return module.eval()


def stream(steps: int, features: int = 6) -> torch.Tensor:
    return torch.randn(steps, 1, features, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def run(model: nn.Module, x: torch.Tensor) -> list[tuple[StepResult, dict[str, torch.Tensor]]]:
    """Each step's result, and the states that it began with."""
    spec, states, results = model.step_spec(), initial_states(model), []
    for row in x:
        result = model.step({"x": row, **threshold_inputs(spec)}, states)
        results.append((result, states))
        states = commit(spec, states, result)
    return results


STACKS = {
    "lstm": lambda: nn.LSTM(6, 8),
    "lstm of three layers": lambda: nn.LSTM(6, 8, 3),
    "lstm with projection": lambda: nn.LSTM(6, 8, 2, proj_size=5, batch_first=True),
    "lstm without bias": lambda: nn.LSTM(6, 8, 2, bias=False),
    "lstm with dropout": lambda: nn.LSTM(6, 8, 2, dropout=0.3),
    "gru": lambda: nn.GRU(6, 8),
    "gru of three layers": lambda: nn.GRU(6, 8, 3),
    "gru without bias": lambda: nn.GRU(6, 8, 2, bias=False),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("write_threshold", [None, 0.0])
@pytest.mark.parametrize("name", STACKS)
@torch.no_grad()
def test_steps_are_what_torch_runs_over_the_sequence(
    name: str, write_threshold: float | None
) -> None:
    module, x = seeded(STACKS[name]), stream(TOKENS)
    time = 1 if module.batch_first else 0
    expected, last = module(x.transpose(0, time))
    results = run(RecurrentStep(module, write_threshold=write_threshold), x)
    y = torch.stack([result.outputs["y"] for result, _ in results])
    torch.testing.assert_close(
        y, expected.transpose(0, 1) if module.batch_first else expected, **CLOSE
    )
    states = dict(zip(("h", "c"), last if isinstance(last, tuple) else (last,), strict=False))
    assert set(states) == set(results[-1][0].states)
    for state, value in states.items():
        torch.testing.assert_close(results[-1][0].states[state].transpose(0, 1), value, **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
@torch.no_grad()
def test_steps_are_what_a_cell_of_torch_gives(kind: type, bias: bool) -> None:
    cell, x, state = seeded(lambda: kind(6, 8, bias=bias)), stream(TOKENS), None
    for row, (result, _) in zip(x, run(RecurrentStep(cell), x), strict=True):
        state = cell(row, state)
        h = state[0] if isinstance(state, tuple) else state
        torch.testing.assert_close(result.outputs["y"], h, **CLOSE)
        torch.testing.assert_close(result.states["h"][:, 0], h, **CLOSE)


@torch.no_grad()
def test_encoder_and_head_stand_around_the_module() -> None:
    encoder, head = nn.Sequential(nn.Linear(3, 6), nn.ELU()), nn.Linear(8, 2)
    module, x = seeded(lambda: nn.GRU(6, 8, 2)), stream(20, 3)
    model = RecurrentStep(module, head, encoder)
    y = torch.stack([result.outputs["y"] for result, _ in run(model, x)])
    torch.testing.assert_close(y, head(module(encoder(x))[0]), **CLOSE)
    spec = model.step_spec()
    assert (spec.inputs[0].shape, spec.outputs[0].shape) == ((1, 3), (1, 2))
    unknown = RecurrentStep(module, None, nn.Sequential(nn.Flatten(), nn.Linear(3, 6)), features=3)
    assert unknown.step_spec().inputs[0].shape == (1, 3)


@torch.no_grad()
def test_soft_gates_tell_what_share_of_each_channel_is_new() -> None:
    x = stream(40)
    lstm = seeded(lambda: nn.LSTMCell(6, 8))
    for row, (result, before) in zip(x, run(RecurrentStep(lstm), x), strict=True):
        sums = row @ lstm.weight_ih.T + lstm.bias_ih
        sums = sums + before["h"][:, 0] @ lstm.weight_hh.T + lstm.bias_hh
        torch.testing.assert_close(result.gates["write"][:, 0], sums[:, :8].sigmoid(), **CLOSE)
    gru = seeded(lambda: nn.GRUCell(6, 8))
    for row, (result, before) in zip(x, run(RecurrentStep(gru), x), strict=True):
        sums = row @ gru.weight_ih.T + gru.bias_ih
        sums = sums + before["h"][:, 0] @ gru.weight_hh.T + gru.bias_hh
        torch.testing.assert_close(
            result.gates["write"][:, 0], 1.0 - sums[:, 8:16].sigmoid(), **CLOSE
        )


def mingru(write_threshold: float | None = None) -> MinGru:
    model = seeded(lambda: MinGru(6, 8, 2, 3, write_threshold))
    assert isinstance(model, MinGru)
    return model


@torch.no_grad()
def test_mingru_steps_are_its_closed_form_over_the_sequence() -> None:
    """h_t is the sum of z_i h~_i over the past, each times the product of 1 - z after it."""
    model, x = mingru(), stream(TOKENS)
    results = run(model, x)
    layer = x[:, 0].double()
    for to_z, to_h in zip(model.to_z, model.to_h, strict=True):
        a = layer @ to_z.weight.double().T + to_z.bias.double()
        candidate = layer @ to_h.weight.double().T + to_h.bias.double()
        kept = torch.nn.functional.logsigmoid(-a).cumsum(0)
        since = (kept[:, None] - kept[None]).masked_fill(
            torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)[..., None], -torch.inf
        )
        layer = torch.einsum("tic,ic->tc", since.exp(), a.sigmoid() * candidate)
    torch.testing.assert_close(results[-1][0].states["h"][0, -1].double(), layer[-1], **CLOSE)
    expected = layer @ model.head.weight.double().T + model.head.bias.double()
    y = torch.cat([result.outputs["y"] for result, _ in results]).double()
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


HARD: dict[str, Callable[[float], nn.Module]] = {
    "lstm": lambda t: RecurrentStep(seeded(lambda: nn.LSTM(6, 8, 2)), write_threshold=t),
    "gru": lambda t: RecurrentStep(seeded(lambda: nn.GRU(6, 8, 2)), write_threshold=t),
    "mingru": lambda t: mingru(t),
}
GUARDED = {"lstm": "c", "gru": "h", "mingru": "h"}


def at_median(name: str) -> nn.Module:
    """Half of the channels skip, more or less."""
    gates = [result.gates["write"] for result, _ in run(HARD[name](0.0), stream(200))]
    return HARD[name](float(torch.cat(gates).median()))


@pytest.mark.parametrize("name", HARD)
def test_a_threshold_of_zero_is_the_plain_model_to_the_last_bit(name: str) -> None:
    x = stream(200)
    for (a, _), (b, _) in zip(run(HARD[name](0.0), x), run(HARD[name](-1.0), x), strict=True):
        assert torch.equal(a.outputs["y"], b.outputs["y"])
        assert all(torch.equal(a.states[state], b.states[state]) for state in b.states)


@pytest.mark.parametrize("name", HARD)
@torch.no_grad()
def test_a_closed_channel_keeps_its_value_and_an_open_one_is_written(name: str) -> None:
    model, open_model, state = at_median(name), HARD[name](0.0), GUARDED[name]
    x = stream(200)
    shares = []
    for row, (result, before) in zip(x, run(model, x), strict=True):
        is_open = result.gates["write"] > model.write_threshold
        old, new = before[state], result.states[state]
        assert torch.equal(new[~is_open], old[~is_open])
        # The first layer's input does not depend on what was closed.
        plain = open_model.step({"x": row, "threshold": torch.zeros(1)}, before).states[state]
        first = is_open[:, 0]
        assert torch.equal(new[:, 0][first], plain[:, 0][first])
        shares.append(is_open.float().mean())
    assert 0.3 < float(torch.stack(shares).mean()) < 0.7


@torch.no_grad()
def test_an_lstm_that_only_forgets_is_not_held() -> None:
    cell = nn.LSTMCell(2, 2)
    for weight in cell.parameters():
        weight.zero_()
    cell.bias_ih[:4] = torch.tensor([-9.0, -9.0, -9.0, 9.0])  # input closed; the first forgets
    model = RecurrentStep(cell, write_threshold=0.5)
    states = {"h": torch.zeros(1, 1, 2), "c": torch.ones(1, 1, 2)}
    result = model.step({"x": torch.ones(1, 2), "threshold": torch.tensor([0.5])}, states)
    assert result.states["c"][0, 0, 0] < 1e-3
    assert result.states["c"][0, 0, 1] == 1.0


@torch.no_grad()
def test_an_lstm_answers_from_a_kept_cell_with_this_steps_output_gate() -> None:
    model = HARD["lstm"](2.0)  # no gate is above one
    for result, before in run(model, stream(20)):
        assert torch.equal(result.states["c"], before["c"])
    start = {"h": torch.zeros(1, 2, 8), "c": torch.ones(1, 2, 8)}
    given = [
        model.step({"x": row, "threshold": torch.tensor([2.0])}, start).outputs["y"]
        for row in stream(2)
    ]
    assert given[0].abs().min() > 0.0 and not torch.equal(*given)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HARD, "lstm with projection", "gru without bias"])
def test_a_bundle_follows_torch_for_a_thousand_steps(seal_model, tmp_path, name: str) -> None:
    model = at_median(name) if name in HARD else RecurrentStep(seeded(STACKS[name]))
    assert model.family == name.split()[0]
    receipt = seal_model(tmp_path / "bundle", model, steps=1000).manifest.verification
    assert receipt.steps == 1000
    assert max(receipt.max_output_error, receipt.max_state_error) < 1e-5


@pytest.mark.corners("lstm")
@pytest.mark.parametrize("name", HARD)
def test_channels_closed_in_a_bundle_keep_their_bytes_and_are_counted(
    seal_model, tmp_path, name: str
) -> None:
    model, state, openings = at_median(name), GUARDED[name], 0
    with Session.open(seal_model(tmp_path / "bundle", model).path) as session:
        for row in stream(100).numpy():
            before = np.array(session.state(state))
            session.step(x=row)
            is_open = session.gates["write"] > np.float32(model.write_threshold)
            assert np.array_equal(session.state(state)[~is_open], before[~is_open])
            openings += int(is_open.sum())
        assert session.ledger.gate_openings == {"write": openings}
        assert session.ledger.state_bytes_written[state] == 4 * openings


@pytest.mark.corners("gru")
@pytest.mark.parametrize("name", HARD)
@torch.no_grad()
def test_gates_that_are_nearly_shut_decide_alike_in_the_engine(
    seal_model, tmp_path, name: str
) -> None:
    model = HARD[name](0.0)
    biases = {
        "lstm": ("module.bias_ih_l0", slice(0, 16), (-100.0, 100.0)),
        "gru": ("module.bias_ih_l0", slice(8, 16), (0.0, 100.0)),
        "mingru": ("to_z.0.bias", slice(0, 8), (-100.0, 0.0)),
    }
    bias, part, (low, high) = biases[name]
    model.get_parameter(bias)[part] = torch.linspace(low, high, part.stop - part.start)
    bundle = seal_model(tmp_path / "bundle", model, steps=200)  # refuses a flipped gate
    with Session.open(bundle.path) as session:
        for row, (result, _) in zip(stream(50), run(model, stream(50)), strict=True):
            session.step(x=row.numpy())
            shut = result.gates["write"].numpy()
            assert shut.min() > 0.0
            np.testing.assert_allclose(session.gates["write"], shut, rtol=1e-4)
    assert shut.min() < 1e-12


@pytest.mark.parametrize("name", HARD)
def test_three_sessions_in_one_graph_stand_alone(seal_model, tmp_path, name: str) -> None:
    model = at_median(name)
    bundle = seal_model(tmp_path / "bundle", model, steps=60, sessions=3)
    assert bundle.manifest.step.state_bytes == 3 * model.step_spec().state_bytes


@pytest.mark.parametrize(
    ("sizes", "state_bytes"),
    [
        (RecurrentConfig("lstm", 64, 256, 2, 8), 4096),
        (RecurrentConfig("lstm", 64, 256, 2, 8, projection=64), 2560),
        (RecurrentConfig("gru", 64, 256, 2, 8), 2048),
        (RecurrentConfig("mingru", 64, 1024, 1, 8), 4096),
    ],
)
def test_bytes_are_known_from_sizes_alone(sizes: RecurrentConfig, state_bytes: int) -> None:
    assert sizes.step_spec().state_bytes == sizes.step_spec(0.5).state_bytes == state_bytes


def test_a_model_and_its_sizes_have_one_spec() -> None:
    lstm = RecurrentStep(nn.LSTM(64, 256, 2, proj_size=64), nn.Linear(64, 8), write_threshold=0.1)
    sizes = RecurrentConfig("lstm", 64, 256, 2, 8, projection=64)
    assert lstm.step_spec() == sizes.step_spec(0.1)
    assert lstm.kv_bytes_per_step == 4096
    assert MinGru(64, 32, 8, 2).step_spec() == RecurrentConfig("mingru", 64, 32, 2, 8).step_spec()


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


GRU = nn.GRU(6, 8)


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (lambda: RecurrentStep(nn.RNN(6, 8)), "module[\\s\\S]*found: RNN[\\s\\S]*nn.GRUCell"),
        (lambda: RecurrentStep(nn.Linear(6, 8)), "found: Linear"),
        (lambda: RecurrentStep(nn.LSTM(6, 8, bidirectional=True)), "bidirectional must be off"),
        (lambda: RecurrentStep(nn.GRU(6, 8, 2, dropout=0.1)), "dropout is on[\\s\\S]*eval"),
        (lambda: RecurrentStep(nn.GRU(6, 8).half()), "found: float16[\\s\\S]*float\\(\\)"),
        (lambda: RecurrentStep(GRU, head=nn.Linear(7, 2)), "head does not take"),
        (lambda: RecurrentStep(GRU, head=TwoOutputs()), "head does not take"),
        (lambda: RecurrentStep(GRU, encoder=nn.Linear(3, 5)), "found: 5 features[\\s\\S]*6"),
        (lambda: RecurrentStep(GRU, features=5), "found: 5 features[\\s\\S]*6"),
        (lambda: RecurrentStep(GRU, encoder=nn.Tanh()), "features is needed[\\s\\S]*Tanh"),
        (lambda: MinGru(6, 8, 2, 0), "layers must not be 0"),
        (lambda: RecurrentConfig("gru", 6, 8, 1, 8, projection=4), "projection"),
        (
            lambda: RecurrentConfig("lstm", 6, 8, 1, 8, projection=8),
            "must not be 8[\\s\\S]*less than the 8",
        ),
    ],
)
def test_what_a_step_cannot_do_is_refused_by_name(make: Callable[[], object], finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        make()
