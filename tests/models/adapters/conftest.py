"""How every adapter is judged: beside its package's own inference, with resets between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import stategate
from stategate.models.lifting.lift import Lifted

STEPS = 200
RESETS = (60, 61, 150)  # steps that begin an episode

Observation = dict[str, np.ndarray]
Answers = Callable[[Observation, bool], np.ndarray]


def closed_loop(step: Lifted, observations: Sequence[Observation]) -> list[Observation]:
    """Outputs of the step from its own memory."""
    states, outputs = step.initial_states(), []
    with torch.no_grad():
        for t, observation in enumerate(observations):
            states = step.initial_states() if t in RESETS else states
            result = step.step({n: torch.from_numpy(a) for n, a in observation.items()}, states)
            states = dict(result.states)
            outputs.append({n: tensor.numpy() for n, tensor in result.outputs.items()})
    return outputs


def of_a_bundle(folder: Path, step: Lifted, observations: Sequence[Observation]) -> list:
    """Outputs of a session of the step's bundle."""
    bundle = stategate.make(step, folder / "bundle", steps=50)
    outputs = []
    with stategate.Session.open(bundle.path) as session:
        for t, observation in enumerate(observations):
            if t in RESETS:
                session.reset()
            outputs.append({n: np.array(a) for n, a in session.step(**observation).items()})
    return outputs


@pytest.fixture
def agrees(tmp_path: Path) -> Callable[..., list[Observation]]:
    """Checks a step, and its bundle on request, against a package; gives the step's outputs.

    ``answers(observation, begins)`` is one call of the package's own inference; ``begins`` says
    that an episode begins with it.
    """

    def check(
        step: Lifted | None,
        observations: Sequence[Observation],
        answers: Answers,
        *,
        bundle: bool = False,
        atol: float = 1e-5,
    ) -> list[Observation]:
        assert step is not None
        assert len(observations) == STEPS
        with torch.no_grad():
            reference = np.stack(
                [answers(o, t in (0, *RESETS)) for t, o in enumerate(observations)]
            )
        assert len(np.unique(reference)) > 1
        outputs = closed_loop(step, observations)
        ways = [outputs]
        if bundle:
            ways.append(of_a_bundle(tmp_path, step, observations))
        for way in ways:
            actions = np.stack([output["action"] for output in way])
            np.testing.assert_allclose(actions.reshape(reference.shape), reference, atol=atol)
        # The memory decides: without resets it answers differently.
        again = closed_loop(step, [*observations[1:], observations[0]])
        shifted = np.stack([output["action"] for output in again])[: RESETS[0] - 1]
        first = np.stack([output["action"] for output in outputs])[1 : RESETS[0]]
        assert first.dtype.kind in "biu" or np.abs(shifted - first).max() > 1e-3
        return outputs

    return check


@pytest.fixture
def noise() -> Callable[..., list[Observation]]:
    """Makes observations of the given shapes, ``(1, ...)``, by name."""

    def draw(**shapes: tuple[int, ...]) -> list[Observation]:
        generator = np.random.default_rng(7)
        return [
            {
                name: (2.0 * generator.normal(size=(1, *shape)) + 0.5).astype(np.float32)
                for name, shape in shapes.items()
            }
            for _ in range(STEPS)
        ]

    return draw
