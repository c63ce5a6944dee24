"""Which writes a model needs: two lives that differ in one write.

The model is rolled at its reference threshold. From a sampled step it goes on twice, once with that
step's write and once without, both by their own decisions afterwards. The write is *needed* if the
life without it answers worse within the horizon:

    with labels       fewer labelled answers are right
    without labels    some output differs by more than a bound, in units of that output's largest
                      magnitude in the life with the write

A threshold T then *misses* a sampled write that is needed where the gate is <= T, and makes a
*needless* one that is not needed where it is above. A gate of several elements is judged by its
largest: a step is missed only when all of it is quiet.

What this is not: it judges writes one at a time on the reference's memory. Two writes that stand in
for each other are both found needless, and a need that shows only after the horizon is not seen.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stategate.calibration.closed_loop import OPEN, SHUT, Lanes, tensors_of
from stategate.calibration.episodes import Report
from stategate.contract import Episode, GateSpec
from stategate.contract.errors import CalibrationError
from stategate.contract.write_rule import opens
from stategate.models.step import StepModel, Tensors

HORIZON = 128
SAMPLES = 256  # of each episode


@dataclass(frozen=True, slots=True)
class Needs:
    """Sampled steps."""

    gate: NDArray[np.float32]  # ``(samples,)`` largest gate value of the step
    needed: NDArray[np.bool_]  # ``(samples,)`` bool

    def rates(self, threshold: float) -> tuple[float, float]:
        """Share of steps that a threshold misses, and that it writes needlessly."""
        is_open = opens(self.gate, threshold)
        return float((~is_open & self.needed).mean()), float((is_open & ~self.needed).mean())

    def merged(self, other: Needs) -> Needs:
        """The samples of both."""
        return Needs(
            np.concatenate((self.gate, other.gate)), np.concatenate((self.needed, other.needed))
        )


@torch.no_grad()
def sample_needs(
    model: StepModel,
    episode: Episode,
    report: Report,
    *,
    gate: GateSpec,
    reference: float,
    bound: float | None,
    seed: int = 0,
) -> Needs:
    """Ask of sampled steps of an episode whether their writes are needed.

    Args:
        model: The model.
        episode: Inputs; labels, where ``bound`` is None. One that does not outlive the horizon
            has no samples.
        report: Called with the number of steps rolled.
        gate: Whose writes they are.
        reference: Threshold that both lives go by.
        bound: Output difference that counts as worse; None judges by labels.
        seed: Of the sample, beside the inputs themselves.
    """
    lanes = Lanes(model, gate)
    if bound is None and not any((a >= 0).any() for a in episode.labels.values()):
        raise CalibrationError(
            "nothing says which writes are needed",
            found="an episode without labels",
            expected="label.<output>, or an output difference that counts: --max-output-error",
        )
    last = episode.steps - HORIZON
    if last < 1:
        return Needs(np.zeros(0, np.float32), np.zeros(0, np.bool_))
    # By content: the same wherever it is rolled, and another for episodes of the same length.
    content = [zlib.crc32(a.tobytes()) for _, a in sorted(episode.inputs.items())]
    rng = np.random.default_rng([seed, *content])
    samples = np.sort(rng.choice(last, min(SAMPLES, last), replace=False))
    chosen = set(samples.tolist())
    starts, before = [], lanes.start(1)
    for step in lanes.run(torch.tensor([reference]), episode, report, last):
        if step.t in chosen:
            starts.append(before)
        before = step.states
    states = {n: torch.cat([s[n] for s in starts] * 2) for n in starts[0]}
    return _two_lives(lanes, episode, samples, states, reference, bound)


def _two_lives(
    lanes: Lanes,
    episode: Episode,
    samples: NDArray[np.int64],
    states: Tensors,
    reference: float,
    bound: float | None,
) -> Needs:
    """Go on from every sample with its write (first half of the lanes) and without (second)."""
    n = len(samples)
    inputs = tensors_of(episode, lanes.spec)
    at = torch.from_numpy(np.concatenate((samples, samples)))
    threshold = torch.cat((torch.full((n,), OPEN), torch.full((n,), SHUT)))
    value = np.zeros(n, np.float32)
    right = np.zeros(2 * n, np.int64)
    names = [o.name for o in lanes.spec.outputs if o.dtype.startswith("float")]
    gap, size = torch.zeros(2, len(names), n)
    for h in range(HORIZON):
        now = {name: array[at + h] for name, array in inputs.items()}
        step = lanes.step(threshold, states, now, own_inputs=True)
        states = step.states
        # The two lives differ in this one decision; afterwards both go by the reference.
        if h == 0:
            value = step.gate[:n].flatten(1).amax(1).numpy()
            threshold = torch.full((2 * n,), reference)
        for name, labels in episode.labels.items():
            label = labels[(at + h).numpy()]
            right += (step.outputs[name].flatten(1).argmax(1).numpy() == label) & (label >= 0)
        for i, name in enumerate(names):
            out = step.outputs[name].flatten(1)
            gap[i] = torch.maximum(gap[i], (out[:n] - out[n:]).abs().amax(1))
            size[i] = torch.maximum(size[i], out[:n].abs().amax(1))
    if bound is None:
        return Needs(value, right[n:] < right[:n])
    worst = (gap / size.clamp(min=1e-30)).amax(0)
    return Needs(value, (worst > bound).numpy())
