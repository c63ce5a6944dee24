"""One training of one task, and what its bundle's step does on fresh streams."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import stategate
from lab.evidence.records import digest_of
from lab.evidence.wrap.pictures import NO_LABEL
from lab.evidence.wrap.rows import VERSIONS, Row, Rule
from lab.evidence.wrap.tasks import TASKS, Task, episodes, fresh, holdout, targets
from stategate.calibration.gates.descent import reproducible
from stategate.calibration.gates.scan import always, hard_gate
from stategate.calibration.wrap.judging import as_often, never, tallied
from stategate.calibration.wrap.recordings import Stream
from stategate.calibration.wrap.training import Labelled, joined
from stategate.calibration.wrap.wrap import Wrapped
from stategate.common import console
from stategate.contract.errors import CalibrationError
from stategate.models.memories.wrapped import RememberingPolicy


def digest(task: str, seed: int, iterations: int) -> str:
    """Of what a row depends on."""
    return digest_of("wrap", VERSIONS.get(task, 1), task, seed, iterations)


def wrapped_row(name: str, seed: int, iterations: int) -> Row:
    """Train, export, and judge on fresh streams; or what was refused, and why."""
    task = TASKS[name]
    key = digest(name, seed, iterations)
    recordings = episodes(task, seed)
    backbone = task.backbone(seed)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            wrapped = stategate.wrap(
                backbone,
                recordings,
                Path(scratch) / "wrapped",
                iterations=iterations,
                seed=seed,
                holdout=holdout(),
                allowed_loss=0.02 if task.labels == "numbers" else 0.005,
            )
        except CalibrationError as refusal:
            return Row(name, seed, key, refusal=str(refusal))
        return row_of(name, seed, key, wrapped, _on_fresh(task, seed, wrapped.policy))


def row_of(name: str, seed: int, key: str, wrapped: Wrapped, rules: tuple[Rule, ...]) -> Row:
    """The row of a training that left a bundle."""
    report, manifest = wrapped.report, wrapped.bundle.manifest
    assert manifest.verification is not None
    return Row(
        name,
        seed,
        key,
        rules=rules,
        hard_rate=report.hard_rate,
        threshold=report.threshold,
        price=report.price,
        chunk=report.chunk,
        iterations=report.iterations,
        held_out_lost=report.lost_points,
        backbone_sha256=report.backbone_sha256,
        verdict=manifest.verdict,
        gate_flips=manifest.verification.gate_flips,
    )


def _on_fresh(task: Task, seed: int, policy: RememberingPolicy) -> tuple[Rule, ...]:
    pictures = fresh(task, seed)
    streams = []
    for x, answer in zip(pictures.x, pictures.answer, strict=True):
        labels = torch.from_numpy(np.ascontiguousarray(targets(task, answer)))
        streams.append(_marked(policy, torch.from_numpy(x), labels, answer))
    threshold = policy.memory.threshold
    rules = {"gate": hard_gate(threshold), "always": always, "never": never}
    rules |= {f"gate > {value:g}": hard_gate(value) for value in (0.0, -2.0)}
    with reproducible(seed), console.progress(len(pictures.x[0]), "fresh streams") as report:
        tallies = tallied(policy, streams, rules, report)
        schedules = as_often(tallies["gate"].write_rate, seed)
        tallies |= tallied(policy, streams, schedules)
    rows = []
    for rule, tally in tallies.items():
        score = tally.error if tally.continuous else 1 - tally.error
        rows.append(Rule(rule, tally.write_rate, score, int(tally.judged.sum())))
    return tuple(rows)


@torch.no_grad()
def _marked(
    policy: RememberingPolicy, x: torch.Tensor, labels: torch.Tensor, answer: np.ndarray
) -> Labelled:
    assert policy.backbone is not None
    features = torch.cat([policy.backbone(x[at : at + 256]) for at in range(0, len(x), 256)])
    data = joined([Stream(features, labels)], policy)
    # What is asked for is what is judged: here the truth is known.
    return data._replace(hard=torch.from_numpy(answer != NO_LABEL))
