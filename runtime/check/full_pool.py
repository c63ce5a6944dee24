"""A bundle stepped as one, however many sessions it serves: for checks against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from stategate.contract import Bundle, Manifest
from stategate.runtime.base.buffers import Array
from stategate.runtime.engines.engine import EngineChoice
from stategate.runtime.pool import Pool
from stategate.runtime.session import Session
from stategate.runtime.trust.policy import Trust


class FullPool:
    """A pool with a session in every row, all of them stepped in every step."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        for _ in range(pool.capacity):
            pool.join()

    @property
    def manifest(self) -> Manifest:
        """What the bundle promises."""
        return self._pool.manifest

    @property
    def engine_name(self) -> str:
        """Engine and version."""
        return self._pool.engine_name

    @property
    def gates(self) -> Mapping[str, Array]:
        """Gate values of the last step by name, ``(rows, ...)``."""
        return self._pool.gates

    def step(self, /, **inputs: Array) -> Mapping[str, Array]:
        """One step of every row; see `Pool.step`."""
        return self._pool.step(**inputs)

    def load_state(self, states: Mapping[str, Array]) -> None:
        """Begin an episode in every row from given states."""
        for row in self._pool.rows:
            self._pool.load_state(row, {name: a[row : row + 1] for name, a in states.items()})

    def begin(self, /, **inputs: Array) -> None:
        """Begin an episode in every row with the bundle's prologue."""
        for row in self._pool.rows:
            self._pool.begin(row, **inputs)

    def state(self, name: str) -> Array:
        """A copy of one state of all rows, ``(rows, ...)``."""
        return np.concatenate([self._pool.state(row, name) for row in self._pool.rows])

    def reset(self) -> None:
        """Put every state of every row back to its initial value."""
        for row in self._pool.rows:
            self._pool.reset(row)

    def close(self) -> None:
        """Free the engine."""
        self._pool.close()


Stepper: TypeAlias = "Session | FullPool"
"""Something that steps a bundle as one."""


def begun(session: Session) -> Session:
    """The same, in an episode of its initial states, where a prologue would have to give others."""
    if session.manifest.prologue is not None:
        names = [state.name for state in session.manifest.states]
        session.load_state({name: session.state(name) for name in names})
    return session


def open_stepper(
    path: str | Path, engine: EngineChoice = "auto", trust: Trust | None = None
) -> Stepper:
    """Open a bundle as a session, or as a full pool where it serves several."""
    if Bundle.open(path).manifest.sessions == 1:
        return begun(Session.open(path, engine=engine, trust=trust, health="off"))
    return FullPool(Pool.open(path, engine, trust=trust))
