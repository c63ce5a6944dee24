"""What a candidate is deployed with: engines, one graph or two, and safe outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import msgspec
import numpy as np

from stategate.contract import Episode
from stategate.contract.errors import LowerError, SpecError
from stategate.contract.names import close_names, did_you_mean
from stategate.export.candidate import Candidate
from stategate.export.passes.choose_split import Layout, choose_layout
from stategate.targets import TargetProfile

Engines = Literal["onnxruntime", "onnxruntime,native", "native"]
SafeOutputs = Mapping[str, float | Sequence[float]]


def check_choices(**choices: tuple[str, object]) -> None:
    """Refuse what the command line refuses too: a word that is none of its kind."""
    for name, (word, kind) in choices.items():
        names = get_args(kind)
        if word not in names:
            raise SpecError(
                f"there is no such value of {name}", found=repr(word), expected=" or ".join(names)
            )


def engines_for(target: TargetProfile, engines: Engines) -> Engines:
    """What the bundle has to have: for a microcontroller C source, or it is refused."""
    return "native" if target.is_microcontroller else engines


def deployed(
    candidate: Candidate, engines: Engines, split: Layout, episode: Episode, measure: bool
) -> Candidate:
    """The candidate with its C source where one is asked for, and its step in one graph or two."""
    if engines != "onnxruntime":
        candidate = with_c(candidate, required=engines == "native")
    return choose_layout(candidate, split, episode, measure)


def with_c(candidate: Candidate, *, required: bool = False) -> Candidate:
    """The candidate with its step as C source, or with the reason why C cannot say it."""
    from stategate.export.c.lower import source_of  # a second to import

    try:
        source = source_of(
            candidate.graph, candidate.spec, candidate.initial, candidate.observation
        )
    except LowerError as problem:
        if required:
            raise
        return replace(candidate, no_native=" ".join(str(problem).split()))
    return replace(
        candidate, c_source=source.files, c_inexact=source.inexact, needs_native=required
    )


def with_safe(candidate: Candidate, safe: SafeOutputs) -> Candidate:
    """The candidate with what its outputs answer where a step fails before a good answer."""
    if not safe:
        return candidate
    names = [tensor.name for tensor in candidate.spec.outputs]
    if unknown := sorted(set(safe) - set(names)):
        raise SpecError(
            "a safe value is for an output that the model lacks",
            found=", ".join(unknown),
            expected=", ".join(names),
            remedy=did_you_mean(close_names(unknown[0], names)) or None,
        )
    try:
        values = {name: _numbers(value) for name, value in safe.items()}
    except (TypeError, ValueError):
        raise SpecError(
            "a safe value is no number", found=repr(dict(safe)), expected="numbers, by output"
        ) from None
    outputs = tuple(
        msgspec.structs.replace(tensor, safe=values.get(tensor.name, tensor.safe))
        for tensor in candidate.spec.outputs
    )
    return replace(candidate, spec=msgspec.structs.replace(candidate.spec, outputs=outputs))


def _numbers(value: float | Sequence[float]) -> float | tuple[float, ...]:
    numbers = np.asarray(value, np.float64)
    return tuple(numbers.ravel().tolist()) if numbers.ndim else float(numbers)
