"""A trained policy becomes a bundle, and the bundle drives the robot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lab.evidence.robot.env import HeldRobot
from lab.evidence.robot.policies import Policy, build
from lab.evidence.robot.rows import Cell, Row
from stategate.contract import Episode
from stategate.contract.errors import ParityError
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.deploy import with_c
from stategate.export.passes.state_precision import stored
from stategate.export.precision import early_limits
from stategate.export.seal.pack import seal
from stategate.export.seal.verify import STRICT
from stategate.models.load import LoadedModel
from stategate.runtime import Session
from stategate.runtime.episodes.gym import Wiring, as_input

PROTOCOL = 1
"""Of `drive` and the robots; a change of either makes every row anew."""

_PARITY_STEPS = 200
_HELD_OUT = 1_000_000
_STORAGE = {"float16": "float16", "int8": "int8", "int8-fed-back": "int8"}


class Exporter:
    """Makes the bundles of one trained policy, whose step is traced once: a threshold is data.

    Args:
        policy: Its name.
        module: Its weights.
        actions: Numbers of an action.
        seen: Observations for the parity check, ``(steps, features)``.
    """

    def __init__(
        self, policy: str, module: nn.Module, actions: int, observations: NDArray[np.float32]
    ) -> None:
        self._policy, self._module, self._actions = policy, module, actions
        self._episode = Episode({"x": observations[:, None]}).resized(_PARITY_STEPS)
        self._traced: dict[bool, Candidate] = {}

    def bundle(self, cell: Cell, out: Path) -> Path:
        """Write the bundle that a cell is run with.

        Args:
            cell: Its threshold and precision are of interest; where no state is guarded, the
                precision is that of all of them.
            out: The bundle's folder.

        Raises:
            ParityError: It does not do what the policy does in torch.
            ExportError: Its states cannot be stored so.
        """
        model = self._model(cell.threshold)
        loaded = LoadedModel(self._policy, model.family, "evidence", model, model, None)
        hard = any(gate.kind == "hard" for gate in model.step_spec().gates)
        if hard not in self._traced:
            self._traced[hard] = candidate_from(loaded)
        candidate = replace(self._traced[hard], spec=model.step_spec())
        reference = reference_for(model, candidate)
        limits = STRICT
        if cell.precision != "float32":
            states = candidate.spec.states
            guarded = [s.name for s in states if s.gate is not None] or [s.name for s in states]
            storage = dict.fromkeys(guarded, _STORAGE[cell.precision])
            candidate = stored(candidate, storage, cell.precision == "int8-fed-back")
            limits = early_limits(None, None)
        try:
            return seal(out, with_c(candidate), reference, self._episode, limits=limits).path
        except ParityError:
            # A last digit that two engines round apart is a whole step of a state in fewer bits,
            # more than a compiled library is allowed; ONNX Runtime alone steps such a bundle.
            reference = reference_for(model, candidate)
            return seal(out, candidate, reference, self._episode, limits=limits).path

    def _model(self, threshold: float | None) -> Policy:
        features = self._episode.inputs["x"].shape[-1]
        with torch.random.fork_rng(devices=[]):
            model, _ = build(self._policy, features, self._actions, threshold)
        model.load_state_dict(self._module.state_dict())
        return model.eval()


def drive(env: HeldRobot, bundle: Path, cell: Cell, episodes: int, recipe: str) -> Row:
    """Let a bundle drive the robot, one episode after another, and count.

    Args:
        env: The robot.
        bundle: The policy's.
        cell: What is run; only its hold and whether it is wiped matter here.
        episodes: How many; their seeds were in no demonstration.
        recipe: Digest for the row.
    """
    successes = 0
    with Session.open(bundle) as session:
        wiring = Wiring(session.manifest.step, env.action_space)
        tensor = wiring.input
        for seed in range(_HELD_OUT, _HELD_OUT + episodes):
            session.reset()
            observation, info = env.reset(seed=seed, options={"hold": cell.hold})
            ended = late = went = False
            while not (ended or late):
                if cell.wiped and info["go"] and not went:
                    session.reset()
                went = info["go"]
                x = as_input(observation, tensor.dtype, tensor.shape)
                answer = session.step(**{tensor.name: x})[wiring.output]
                observation, _, ended, late, info = env.step(wiring.action(answer))
            successes += info["success"]
        ledger = session.ledger
        return Row(
            cell,
            episodes,
            successes,
            ledger.writes,
            ledger.steps,
            ledger.memory_bytes_written,
            session.manifest.state_bytes,
            session.engine_name,
            recipe,
        )
