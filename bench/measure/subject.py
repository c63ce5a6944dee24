"""What a worker steps: one step of a model, however it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stategate.contract import Bundle
from stategate.contract.errors import StategateError
from stategate.contract.write_rule import opens
from stategate.runtime import Pool, Session
from stategate.runtime.base.buffers import Array
from stategate.runtime.engines.engine import ENGINES, EngineChoice


class GateLog:
    """Keeps the gates of every step; whether they were open is worked out afterwards."""

    def __init__(self, session: Session | Pool, timed: int) -> None:
        gates = [gate for gate in session.manifest.gates if gate.kind == "hard"]
        self._rows = [
            (np.zeros((timed, *gate.shape), np.float32), session.gates[gate.name], gate.threshold)
            for gate in gates
        ]

    def note(self, i: int) -> None:
        """Copy the gates."""
        for rows, live, _ in self._rows:
            rows[i] = live

    def read(self, count: int) -> Array:
        """1 where any element of a gate was above its threshold; without a gate, in every step."""
        wrote = np.full(count, not self._rows)
        for rows, _, threshold in self._rows:
            wrote |= opens(rows[:count].reshape(count, -1), threshold).any(axis=1)
        return wrote.astype(np.uint8)


class Subject:
    """A session, as a robot would open it, or a pool with every row taken.

    What else is measured beside it has the same members.
    """

    def __init__(self, bundle: str, engine: EngineChoice = "auto") -> None:
        self.session = opened(bundle, engine)
        self.engine = self.session.engine_name

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """`Session.step`, or `Pool.step` of all rows."""
        return self.session.step(**inputs)

    def writes(self, timed: int) -> GateLog:
        """By the gates, where there is a hard one; else every step writes."""
        return GateLog(self.session, timed)

    def ledger(self) -> dict[str, Any]:
        """The session's own; of a pool, the sum over its rows."""
        if isinstance(self.session, Session):
            return asdict(self.session.ledger)
        total: dict[str, Any] = _sum([asdict(self.session.ledger(r)) for r in self.session.rows])
        return total


def _sum(counters: list[Any]) -> Any:
    """Counters of several rows as one, those by name by their name."""
    if isinstance(counters[0], dict):
        return {name: _sum([one[name] for one in counters]) for name in counters[0]}
    return sum(counters)


def opened(bundle: str | Path, engine: EngineChoice) -> Session | Pool:
    """What steps a bundle: a session, or a pool that a session has joined in every row."""
    if Bundle.open(bundle).manifest.sessions == 1:
        return Session.open(bundle, engine=engine)
    pool = Pool.open(bundle, engine=engine)
    for _ in range(pool.capacity):
        pool.join()
    return pool


def engines(bundle: str | Path) -> tuple[list[EngineChoice], list[str]]:
    """Engines of the runtime that can step a bundle here, and why the others cannot."""
    able: list[EngineChoice] = []
    unable = []
    for engine in ENGINES:
        if engine != "auto":
            try:
                opened(bundle, engine).close()
                able.append(engine)
            except StategateError as problem:
                unable.append(f"{engine}: {' '.join(str(problem).split())}")
    return able, unable


def parity(bundle: Bundle, subject: Subject) -> float | None:
    """Largest difference to the golden outputs, in units of the largest of them.

    The subject must be fresh: the golden episode begins at the initial state.
    """
    golden = bundle.golden()
    if golden is None or not golden.outputs:
        return None
    scale = {name: float(np.abs(a).max()) or 1.0 for name, a in golden.outputs.items()}
    worst = 0.0
    for t, inputs in enumerate(golden):
        outputs = subject.step(inputs)
        for name, expected in golden.outputs.items():
            error = float(np.abs(np.asarray(outputs[name]) - expected[t]).max()) / scale[name]
            # NaN compares as neither larger nor smaller, and would pass.
            worst = max(worst, error if error == error else float("inf"))
    return worst
