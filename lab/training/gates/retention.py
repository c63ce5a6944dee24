"""Training TRIM-KV's retention gates on a frozen model (arXiv:2512.03324, section 4).

The teacher is the model itself with all of its past: plain causal attention over a window. The
student is the same attention with every logit multiplied by what is left of its token,

    softmax_i(beta_i^(t-i) q_t . k_i / sqrt d),

and only the gates that make beta learn. The loss is how far the student's answers are from the
teacher's, in units of their size, plus the price of what is retained beyond the slots that there
are:

    mean |y - y*|^2 / mean |y*|^2  +  price * mean_t relu(sum_i beta_i^(t-i) - M) / M

At run time nothing is multiplied; the weakest token leaves, and training made it the one that the
answers need least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lab.training.gates.frozen import frozen_but
from lab.training.gates.recipes import RetentionRecipe
from stategate.calibration.closed_loop import tensors_of
from stategate.calibration.episodes import Report
from stategate.calibration.gates.descent import cosine, descend
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError
from stategate.models.functions import log_sigmoid
from stategate.models.memories.trim_kv.cell import PERIOD, TrimKv, rotated
from stategate.models.step import commit, initial_states, threshold_inputs

JUDGED_STEPS = 1024


def train_retention(
    model: TrimKv,
    episodes: Iterable[Episode],
    recipe: RetentionRecipe | None = None,
    report: Report = lambda _: None,
) -> None:
    """Train the retention gates of ``model`` in place; nothing else of it changes.

    Args:
        model: Frozen but for its `TrimKv.retention_gates`.
        episodes: Inputs; all are held in memory.
        recipe: How.
        report: Called with the number of iterations done.

    Raises:
        EpisodeError: An episode does not fit the model.
        CalibrationError: The window is no longer than the memory, no episode is that long,
            or the training diverged.
    """
    recipe = recipe or RetentionRecipe()
    memory = model.config.memory
    if recipe.window <= memory:
        raise CalibrationError(
            "nothing has to leave a memory that holds the whole window",
            found=f"a window of {recipe.window} steps and {memory} slots",
            expected=f"more than {memory} steps",
        )
    spec = model.step_spec()
    streams = [tensors_of(episode, spec)["x"][:, 0] for episode in episodes]
    streams = [x for x in streams if len(x) >= recipe.window]
    if not streams:
        raise CalibrationError(
            "there is nothing to train the gates on",
            expected=f"at least one episode of {recipe.window} steps or more",
        )
    trained = list(model.retention_gates().values())
    draws = torch.Generator().manual_seed(recipe.seed)

    def loss_of(_: int) -> Tensor:
        windows = (_window(streams, recipe.window, draws) for _ in range(recipe.streams))
        x = torch.stack(list(windows))
        with torch.no_grad():
            target = answers(model, x, retained=False)[0]
        y, log_betas = answers(model, x, retained=True)
        error = (y - target).square().mean() / target.square().mean().clamp(min=1e-30)
        return error + recipe.capacity_price * beyond(log_betas, memory)

    with frozen_but(model, trained):
        descend(
            trained,
            loss_of,
            iterations=recipe.iterations,
            learning_rate=recipe.learning_rate,
            rate=cosine(recipe.iterations, 0.0),
            remedy="lower --learning-rate or --capacity-price; look for overflow in the model",
            report=report,
        )


def answers(model: TrimKv, x: Tensor, *, retained: bool) -> tuple[Tensor, list[Tensor]]:
    """A window of observations at once, with all of its past.

    Args:
        model: The model.
        x: ``(rows, time, features)``.
        retained: Multiply logits by what is left of each token; otherwise plain attention.

    Returns:
        Answers ``(rows, time, out_features)``, and the log-retention of each layer
        ``(rows, kv heads, time)``.
    """
    times = torch.arange(x.shape[1], dtype=torch.int64)
    turns = torch.remainder(times[:, None] * model.rates[1:].long(), PERIOD).float()
    angles = (turns * (math.tau / PERIOD)).unsqueeze(1)  # (time, 1, head_dim / 2)
    hidden = model.embed(x)
    log_betas = []
    for layer in model.layers:
        hidden, log_beta = _attend(layer, hidden, (torch.cos(angles), torch.sin(angles)), retained)
        log_betas.append(log_beta)
    y: Tensor = model.head(model.norm(hidden))
    return y, log_betas


@torch.no_grad()
def lived_error(model: TrimKv, episode: Episode, report: Report = lambda _: None) -> float:
    """Error of answers in closed loop, in units of those that all of the past would give.

    Root mean square over the first `JUDGED_STEPS` of an episode, attention over which at once takes
    memory in its square.
    """
    spec = model.step_spec()
    x = tensors_of(episode, spec)["x"][:JUDGED_STEPS]
    target = answers(model, x[:, 0][None], retained=False)[0][0]
    states, fixed = initial_states(model), threshold_inputs(spec)
    gap = torch.zeros(())
    for t, observation in enumerate(x):
        result = model.step({"x": observation, **fixed}, states)
        states = commit(spec, states, result, spec.thresholds)
        gap = gap + (result.outputs["y"][0] - target[t]).square().sum()
        report(t + 1)
    return float((gap / target.square().sum().clamp(min=1e-30)).sqrt())


def _attend(
    layer: nn.Module, x: Tensor, rotation: tuple[Tensor, Tensor], retained: bool
) -> tuple[Tensor, Tensor]:
    part = dict(layer.named_children())
    heads, width = layer.kv_heads, layer.head_dim
    assert isinstance(heads, int) and isinstance(width, int)
    rows, time, _ = x.shape
    z = part["attention_norm"](x)

    def split(name: str) -> Tensor:
        projected: Tensor = part[name](z)
        return projected.reshape(rows, time, -1, width)

    q = rotated(part["q_norm"](split("to_q")), *rotation).reshape(rows, time, heads, -1, width)
    k = rotated(part["k_norm"](split("to_k")), *rotation)
    log_beta = log_sigmoid(part["gate_out"](silu(part["gate_in"](z)))).transpose(1, 2)
    logits = torch.einsum("rthgd,rshd->rhgts", q, k) * width**-0.5
    age = _age(time)
    if retained:
        logits = logits * torch.exp(log_beta[..., None, :] * age.clamp(min=0)).unsqueeze(2)
    logits = logits.masked_fill(age < 0, -math.inf)
    read = torch.einsum("rhgts,rshd->rthgd", torch.softmax(logits, -1), split("to_v"))
    x = x + part["to_out"](read.flatten(2))
    gate, up = part["mlp_in"](part["mlp_norm"](x)).chunk(2, dim=-1)
    return x + part["mlp_out"](silu(gate) * up), log_beta


def beyond(log_betas: list[Tensor], memory: int) -> Tensor:
    """What is retained beyond the slots, in memories; mean over heads and time."""
    stacked = torch.stack(log_betas, 1)  # (rows, layers, heads, time)
    age = _age(stacked.shape[-1])
    retained = torch.exp(stacked[..., None, :] * age.clamp(min=0)) * (age >= 0)
    return torch.relu(retained.sum(-1) - memory).mean() / memory


def _age(time: int) -> Tensor:
    """``(time, time)``: how long before step t (row) step i (column) was."""
    times = torch.arange(time)
    return times[:, None] - times[None, :]


def _window(streams: list[Tensor], steps: int, draws: torch.Generator) -> Tensor:
    x = streams[int(torch.randint(len(streams), (), generator=draws))]
    first = int(torch.randint(len(x) - steps + 1, (), generator=draws))
    return x[first : first + steps]
