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
from pathlib import Path
from typing import Protocol

import numpy as np

from stategate.contract import Bundle, Episode
from stategate.contract.stored import quanta, residual_name, values
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.check.full_pool import FullPool
from stategate.runtime.check.gaps import Answer, SideBySide, recorded
from stategate.runtime.engines.engine import Engine, EngineChoice, Resident
from stategate.runtime.pool import Pool
from stategate.runtime.session import Session

PARTED_SHARE = 0.25
"""Half of what truncation in place of rounding parts, on values that lie anywhere."""
_FEWEST = 16  # of fewer elements than this, as many may part as of so many
_NOISE = 32 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class OneStep:
    """What came of single steps.

    Attributes:
        steps: Steps that were compared.
        max_error: Largest difference of outputs and states, see `Gaps`; of a state in fewer bits
            what is beyond one quantum.
        parted: Share of the written elements of a state in fewer bits that are more than half a
            quantum off, in the worst state.
        gate_flips: Gate decisions that differed.
    """

    steps: int
    max_error: float
    parted: float
    gate_flips: int

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


class _Stepper(Protocol):
    """What single steps are taken with."""

    @property
    def gates(self) -> Mapping[str, Array]:
        """Gate values of the last step by name."""
        ...

    def step_from(
        self, states: Mapping[str, Array], inputs: dict[str, Array]
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Outputs, and states after the step."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class _From:
    """An engine whose every step begins from states that were put before it.

    Attributes:
        name: That of the engine which computes.
        states: What the next step begins from, by name.
    """

    def __init__(self, engine: Engine, buffers: Buffers) -> None:
        self.name = engine.name
        self.states: Mapping[str, Array] = {}
        self._engine, self._buffers = engine, buffers

    def run(self, parity: int) -> bool:
        """Put the states into the banks that are read, and compute."""
        for state in self._buffers.states:
            bank = state.banks[bool(parity & self._buffers.bit_of(state))]
            np.copyto(bank.array, self.states[state.spec.name])
        if isinstance(self._engine, Resident):
            self._engine.push(parity)
        return self._engine.run(parity)

    def write(self, parity: int) -> None:
        """As the engine does."""
        self._engine.write(parity)

    def close(self) -> None:
        """Free what the engine holds."""
        self._engine.close()


class _SingleSession:
    """Steps a bundle for one session from given states."""

    def __init__(self, path: Path, choice: EngineChoice) -> None:
        self._session = Session.open(path, engine=choice)
        self._session.replace_engine(self._begun)
        self.gates = self._session.gates

    def _begun(self, engine: Engine, buffers: Buffers) -> Engine:
        self._from = _From(engine, buffers)
        return self._from

    def step_from(
        self, states: Mapping[str, Array], inputs: dict[str, Array]
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """One step from given states: outputs, and states after it."""
        self._from.states = states
        outputs = self._session.step(**inputs)
        return outputs, {name: self._session.state(name) for name in states}

    def close(self) -> None:
        """Free the engine."""
        self._session.close()


def one_step(bundle: Bundle, golden: Episode, choice: EngineChoice) -> OneStep | None:
    """Take each step of a golden episode's trail alone, from the states that it recorded.

    Args:
        bundle: The bundle.
        golden: Its golden episode, with a trail.
        choice: Which engine steps it.

    Returns:
        The comparison, or None where the trail writes no element of some state in fewer bits, and
        so shows nothing.
    """
    manifest = bundle.manifest
    before = {name: trail[:-1] for name, trail in golden.trail.items()}
    right = {name: trail[1:] for name, trail in golden.trail.items()}
    right_values, steps_apart = values(manifest.states, right), quanta(manifest.states, right)
    # The integers of a state in fewer bits are compared as what they stand for.
    alike = [
        s.name
        for s in manifest.states
        if s.name not in steps_apart and (s.name in right_values or s.dtype == "float32")
    ]
    run = SideBySide(manifest)
    stepped: list[Mapping[str, Array]] = []
    with closing(_open(bundle, choice)) as stepper:
        # A trail may end before the episode.
        steps = range(len(next(iter(right.values()))))
        for t, inputs, reference in zip(steps, golden, recorded(golden), strict=False):
            reference = reference._replace(states={})
            outputs, after = stepper.step_from({n: a[t] for n, a in before.items()}, inputs)
            run.add(Answer(outputs, stepper.gates), reference)
            run.states.add(after, {name: right[name][t] for name in alike})
            stepped.append(after)
    stored = {name: np.stack([after[name] for after in stepped]) for name in right}
    values_after = values(manifest.states, stored)
    worst, shares = [run.outputs.worst(), run.states.worst()], [0.0]
    for name, quantum in steps_apart.items():
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
    return OneStep(len(stepped), float(np.max(worst)), float(max(shares)), run.flips)


def _open(bundle: Bundle, choice: EngineChoice) -> _Stepper:
    if bundle.manifest.sessions == 1:
        return _SingleSession(bundle.path, choice)
    return FullPool(Pool.open(bundle.path, choice))
