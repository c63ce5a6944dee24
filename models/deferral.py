"""The deferred form of a step model: the same answers, its matrices written once in L writes."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any, SupportsIndex, cast

import msgspec
import torch
from torch import Tensor, nn

from stategate.contract import GateSpec, StateSpec, StepSpec
from stategate.contract.errors import SpecError
from stategate.models.memories.matrix import Deferred, Ring, Waiting
from stategate.models.step import StepResult, Tensors, opens

FOLD = "fold"  # gate that is open in the steps that fold
COUNT = "waiting"  # state that counts rows
LONGEST = 1024


def _checked(length: SupportsIndex | str) -> int:
    """How many writes there are until a fold."""
    try:
        number = index(int(length) if isinstance(length, str) else length)
    except (TypeError, ValueError):
        number = 0
    if 2 <= number <= LONGEST:
        return number
    raise SpecError(
        "writes are not deferred for so long",
        found=f"{length!r} writes until a fold",
        expected=f"2 to {LONGEST}, auto or fewest-bytes",
        remedy="--defer 16, or defer=16 in Python",
    )


class DeferredStep(nn.Module):
    """A step model whose matrices wait.

    The model has ``rings()``, which says what can wait. Its ``step`` takes a `Waiting` in place of
    the tensor of such a matrix, and then gives a `Deferred` as its next value.

    Args:
        model: The plain model; weights are shared.
        length: A fold comes with every so many writes.

    Raises:
        SpecError: The model has no matrices that can wait, or the length is none.
    """

    def __init__(self, model: nn.Module, length: SupportsIndex | str) -> None:
        super().__init__()
        self.model = cast(Any, model)
        if not getattr(self.model, "rings", tuple)():
            raise SpecError(
                "this model has no writes that can be deferred",
                found=type(model).__name__,
                expected="a memory that decays and adds outer products: the delta family, Mamba-2, "
                "Mamba-3, mLSTM, RWKV-7, TTT-linear, AURA-Mem",
                remedy="export it without --defer",
            )
        # The last write of each turn is folded with the rows before it.
        self._rows = _checked(length) - 1
        (self._gate,) = (gate for gate in self.model.step_spec().gates if gate.kind == "hard")

    def step_spec(self) -> StepSpec:
        """That of the plain model, with rings, their cursor, and a gate for folds."""
        plain: StepSpec = self.model.step_spec()
        rings = self.model.rings()
        owner = {state: ring for ring in rings for state in ring.parts}
        states = [
            msgspec.structs.replace(s, gate=FOLD, folds=owner[s.name].name)
            if s.name in owner
            else s
            for s in plain.states
        ]
        states += [
            StateSpec(
                ring.name,
                (1, self._rows, ring.heads, ring.width),
                gate=self._gate.name,
                layout="write, head, decay key value",
                cursor=COUNT,
            )
            for ring in rings
        ]
        states.append(StateSpec(COUNT, (1,), "int32", layout="rows in each ring"))
        # Of 0 and 1; with any other threshold a full ring would never be folded.
        between = (0.0, 1.0)
        fold = GateSpec(FOLD, "hard", (1, 1), 0.5, f"{FOLD}_threshold", threshold_range=between)
        return StepSpec(
            plain.inputs, plain.outputs, tuple(states), (*plain.gates, fold), plain.constants
        )

    def initial_states(self) -> Mapping[str, Tensor]:
        """Those of the plain model; rings start empty."""
        start: Mapping[str, Tensor] = getattr(self.model, "initial_states", dict)()
        return start

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step; a matrix changes in the steps in which ``fold`` is open, and in no other."""
        threshold = inputs[f"{FOLD}_threshold"]
        plain = {name: t for name, t in inputs.items() if name != f"{FOLD}_threshold"}
        count = states[COUNT]
        result = self.model.step(plain, self._waiting(states))
        gate = result.gates[self._gate.name]
        is_open = opens(gate, plain[str(self._gate.threshold_input)]).flatten(1).any(-1)
        is_full = count >= self._rows
        fold = (is_open & is_full).to(torch.float32).unsqueeze(-1)
        folds = opens(fold, threshold)
        more = torch.where(folds.squeeze(-1), 0, count + 1).to(count.dtype)
        after = dict(result.states)
        for ring in self.model.rings():
            self._put(ring, states, after, folds)
        after[COUNT] = torch.where(is_open, more, count)
        return StepResult(result.outputs, after, {**result.gates, FOLD: fold})

    def _waiting(self, states: Tensors) -> dict[str, Any]:
        """The states as the plain model takes them, with what waits in place of its matrices."""
        waiting: dict[str, Any] = dict(states)
        count = waiting.pop(COUNT)
        for ring in self.model.rings():
            rows = waiting.pop(ring.name)
            start = ring.decay
            for name, key in ring.parts.items():
                parts = (
                    rows[..., : ring.decay],
                    rows[..., start : start + key],
                    rows[..., -ring.value :],
                )
                own = rows if len(ring.parts) == 1 else torch.cat(parts, dim=-1)
                S = self._heads(ring, states[name], key)
                waiting[name] = Waiting(S, own, count, ring.updates)
                start += key
        return waiting

    def _heads(self, ring: Ring, S: Tensor, key: int) -> Tensor:
        rows = (ring.value, key) if ring.value_first else (key, ring.value)
        if S.shape[1:] != (ring.heads, *rows):
            S = S.reshape(-1, ring.heads, *rows)
        return S.transpose(-1, -2) if ring.value_first else S

    def _put(self, ring: Ring, states: Tensors, after: dict[str, Any], folds: Tensor) -> None:
        """Turn what the plain model leaves of a ring's matrices into next states."""
        deferred: dict[str, Deferred] = {name: after[name] for name in ring.parts}
        for name, one in deferred.items():
            folded = one.folded.transpose(-1, -2) if ring.value_first else one.folded
            S = states[name]
            wide = folds.view(-1, *[1] * (S.dim() - 1))
            folded = folded if folded.shape == S.shape else folded.reshape(S.shape)
            after[name] = torch.where(wide, folded, S)
        rows = [one.row for one in deferred.values()]
        keys = [row[..., ring.decay : -ring.value] for row in rows]
        after[ring.name] = (
            torch.cat((rows[0][..., : ring.decay], *keys, rows[0][..., -ring.value :]), dim=-1)
            if len(rows) > 1
            else rows[0]
        )
