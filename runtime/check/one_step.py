"""A memory in fewer bits, one step at a time from the states that the golden episode recorded.

Two engines that agree in float32 but for its last digits can find a value on two sides of the
middle between two that can be stored. Then one element is stored a whole quantum apart, which is
nobody's fault, and a run on its own states goes on from there. So each step is begun from recorded
states here. What float32 tells is held to the tolerance as ever; an element in fewer bits may be a
quantum off besides, and only few may: rounding in another way moves about every second one that is
written, and a wrong scale or a lost residual moves them further.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from stategate.contract import Bundle, Episode
from stategate.contract.stored import quanta, residual_name, values
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.full_pool import open_stepper
from stategate.runtime.check.gaps import Answer, SideBySide, recorded
from stategate.runtime.engines.engine import EngineChoice

PARTED_SHARE = 0.25
"""Half of what truncation in place of rounding parts, on values that lie anywhere."""
_FEWEST = 16  # of fewer elements than this, as many may part as of so many
_NOISE = 32 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class OneStep:
    """What came of single steps."""

    steps: int  # steps that were compared
    # largest difference of outputs and states, see `Gaps`; of a state in fewer bits what is beyond
    # one quantum
    max_error: float
    # share of the written elements of a state in fewer bits that are more than half a quantum off,
    # in the worst state
    parted: float
    gate_flips: int  # gate decisions that differed
    usual_output_error: float = 0.0  # half of the steps have no larger difference of an output

    def passes(self, tolerance: float) -> bool:
        """Whether the error is within the tolerance, few elements parted and no gate flipped."""
        # Written so that NaN fails.
        few = self.max_error <= tolerance and self.parted <= PARTED_SHARE
        return few and self.gate_flips == 0

    @property
    def summary(self) -> str:
        """What was found, in words."""
        return (
            f"step by step: error {self.max_error:.3g}, {self.parted:.2%} of stored elements "
            f"a quantum off (allowed {PARTED_SHARE:.0%}), {self.gate_flips} gate flips"
        )


def one_step(bundle: Bundle, golden: Episode, choice: EngineChoice) -> OneStep | None:
    """Take each step of a golden episode's trail alone, from the states that it recorded.

    Returns:
        The comparison, or None where the trail writes no element of some state in fewer bits, and
        so shows nothing.
    """
    manifest = bundle.manifest
    before = {name: trail[:-1] for name, trail in golden.trail.items()}
    right = {name: trail[1:] for name, trail in golden.trail.items()}
    right_values, quantum_of = values(manifest.states, right), quanta(manifest.states, right)
    # The integers of a state in fewer bits are compared as what they stand for.
    alike = [
        s.name
        for s in manifest.states
        if s.name not in quantum_of and (s.name in right_values or s.dtype == "float32")
    ]
    run = SideBySide(manifest)
    stepped: list[Mapping[str, Array]] = []
    with closing(open_stepper(bundle.path, choice)) as stepper:
        # A trail may end before the episode.
        steps = range(len(next(iter(right.values()))))
        for t, inputs, reference in zip(steps, golden, recorded(golden), strict=False):
            reference = reference._replace(states={})
            stepper.load_state({name: array[t] for name, array in before.items()})
            outputs = stepper.step(**inputs)
            after = {name: stepper.state(name) for name in right}
            run.add(Answer(outputs, stepper.gates), reference)
            run.states.add(after, {name: right[name][t] for name in alike})
            stepped.append(after)
    stored = {name: np.stack([after[name] for after in stepped]) for name in right}
    values_after = values(manifest.states, stored)
    worst, shares = [run.outputs.worst(), run.states.worst()], [0.0]
    for name, quantum in quantum_of.items():
        off = np.abs(values_after[name] - right_values[name])
        size = float(np.abs(right_values[name]).max())
        parts = [part for part in (name, residual_name(name)) if part in right]
        written = np.logical_or.reduce(
            [(run[part] != before[part]) for part in parts for run in (stored, right)]
        )
        # Of a quantum that float32 can just about tell, nobody knows which side is right.
        judged = written & (quantum > _NOISE * size)
        if not judged.any():
            return None
        worst.append(float(np.max(off - quantum)) / size)
        shares.append((judged & (off > quantum / 2)).sum() / max(judged.sum(), _FEWEST))
    parted, usual = float(max(shares)), run.outputs.usual()
    return OneStep(len(stepped), float(np.max(worst)), parted, run.flips, usual)
