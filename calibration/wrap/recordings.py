"""Recordings as features and labels, and which of them nothing is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stategate.calibration.episodes import Report
from stategate.calibration.wrap.backbone import Backbone, checked_features
from stategate.contract import Episode, EpisodeSet, TensorSpec, load_episode
from stategate.contract.errors import EpisodeError

NOT_JUDGED = -1


@dataclass(frozen=True, slots=True)
class Form:
    """What a recording holds."""

    inputs: tuple[TensorSpec, ...]  # of the backbone
    key: str  # of the labels, ``label.NAME`` or ``input.NAME``
    continuous: bool  # whether they are numbers and not classes

    @property
    def label(self) -> str:
        """Name of the labels without its kind."""
        return self.key.partition(".")[2]


@dataclass(frozen=True, slots=True)
class Stream:
    """One recording, which begins with an empty memory."""

    features: Tensor  # ``(steps, features)`` float32
    # ``(steps,)`` int64, -1 where nothing is judged; or ``(steps, numbers)`` float32
    labels: Tensor


def form_of(files: EpisodeSet, label: str) -> Form:
    """Which arrays are inputs and which are labels."""
    form = dict(files.files[0].form)
    keys = [key for key in (f"label.{label}", f"input.{label}") if key in form]
    if not keys:
        raise EpisodeError(
            "the recordings have no labels of this name",
            found=", ".join(form),
            expected=f"label.{label}, int64 [steps], -1 where nothing is judged; or input.{label}, "
            "float32 [steps, numbers], for continuous actions",
            remedy="name the array with --label, or record what the policy or an expert did",
        )
    dtype, shape = form.pop(keys[0])
    continuous = np.dtype(dtype).kind == "f"
    if not continuous and (np.dtype(dtype).kind not in "iu" or math.prod(shape) != 1):
        raise EpisodeError(
            f"{keys[0]} is neither classes nor numbers",
            found=f"{dtype} [steps, {', '.join(map(str, shape))}]",
            expected="integers [steps], or float32 [steps, numbers]",
        )
    inputs = []
    for key, (kind, one) in form.items():
        if not key.startswith("input."):
            continue
        if one[:1] != (1,):
            raise EpisodeError(
                f"{key} has no leading axis of 1",
                found=f"[steps, {', '.join(map(str, one))}]",
                expected="[steps, 1, ...]",
                remedy="array[:, None]",
            )
        inputs.append(TensorSpec(key.removeprefix("input."), one, kind))
    if not inputs:
        raise EpisodeError("the recordings hold nothing but labels", found=keys[0])
    return Form(tuple(inputs), keys[0], continuous)


def streams_of(
    files: EpisodeSet, form: Form, backbone: Backbone, report: Report = lambda _: None
) -> list[Stream]:
    """Features and labels of every recording, read a block at a time."""
    streams, done = [], 0
    for file in files.files:
        features: list[NDArray[np.float32]] = []
        labels: list[NDArray[Any]] = []
        first = 0
        for block in file.blocks():
            inputs = {tensor.name: block.inputs[tensor.name] for tensor in form.inputs}
            features.append(checked_features(backbone, inputs, first))
            group = block.labels if form.key.startswith("label.") else block.inputs
            labels.append(group[form.label].reshape(block.steps, -1))
            first, done = first + block.steps, done + block.steps
            report(done)
        answers = np.concatenate(labels)
        whole = answers.astype(np.float32) if form.continuous else answers[:, 0].astype(np.int64)
        streams.append(Stream(torch.from_numpy(np.concatenate(features)), torch.from_numpy(whole)))
    return streams


def parted(streams: Sequence[Stream], holdout: float) -> tuple[list[Stream], list[Stream]]:
    """What is trained on and what is held out: the last recordings, or the last part of one."""
    if len(streams) == 1:
        (one,) = streams
        first = max(1, round(len(one.features) * (1 - holdout)))
        return (
            [Stream(one.features[:first], one.labels[:first])],
            [Stream(one.features[first:], one.labels[first:])],
        )
    count = min(len(streams) - 1, max(1, math.ceil(len(streams) * holdout)))
    return list(streams[:-count]), list(streams[-count:])


def classes_of(streams: Sequence[Stream], actions: int | None, key: str) -> int:
    """How many classes there are: as many as asked for, or as the labels show."""
    labels = torch.cat([stream.labels for stream in streams])
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < NOT_JUDGED or highest >= (actions or highest + 1) or highest < 1:
        raise EpisodeError(
            f"{key} is no index into the actions",
            found=f"numbers from {lowest} to {highest}",
            expected=f"-1 (not judged) to {actions - 1}" if actions else "two classes at least",
        )
    return actions or highest + 1


def excerpt(files: EpisodeSet, form: Form, training: Sequence[Stream], steps: int) -> Episode:
    """The first held-out inputs as they were recorded, for the check of the bundle."""
    # Of a single recording the last part is held out.
    lone = len(files) == 1
    file = files.files[0 if lone else len(training)]
    first = len(training[0].labels) if lone else 0
    whole = load_episode(file.path, first + steps)  # and no more: a recording may be large
    inputs = {t.name: whole.inputs[t.name][first : first + steps] for t in form.inputs}
    return Episode(inputs, rate_hz=whole.rate_hz, provenance=f"{file.name}, held out")
