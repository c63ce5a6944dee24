"""What a check steps a model through: a recording, a benchmark, declared ranges, or noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stategate.contract import Episode, InputsRef, StepSpec, load_episode
from stategate.contract.dtypes import dtype_named
from stategate.contract.errors import EpisodeError

Range = tuple[float, float]


def recorded(
    source: str | Path | Episode, steps: int, ranges: Mapping[str, Range] | None = None
) -> tuple[Episode, str]:
    """An episode of a program, or the first steps of a file or folder; and its name.

    Raises:
        EpisodeError: It cannot be read, or ranges are given too, which nothing would be drawn from.
    """
    if ranges:
        raise EpisodeError(
            "inputs are recorded, or drawn from ranges, and not both",
            found=f"a recording, and --range for {', '.join(ranges)}",
            remedy="leave one of them out",
        )
    if isinstance(source, Episode):
        return source, source.provenance or "an episode in memory"
    return load_episode(source, steps), Path(source).name


def drawn(
    spec: StepSpec,
    steps: int,
    ranges: Mapping[str, Range],
    choices: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Episode, InputsRef]:
    """Random inputs: even in a range that the user declared, noise where nothing is known.

    Args:
        spec: The signature.
        steps: How many.
        ranges: Declared, by input.
        choices: Numbers of integer inputs that the graph itself knows, by input; see
            `stategate.export.frontends.steering`.

    Raises:
        EpisodeError: A range is for an input that the model lacks, or does not fit its dtype.
    """
    tensors = {tensor.name: tensor for tensor in spec.inputs}
    if unknown := sorted(set(ranges) - set(tensors)):
        raise EpisodeError(
            "a range is for an input that the model lacks",
            found=", ".join(f"--range {name}" for name in unknown),
            expected=", ".join(tensors),
        )
    for name, (low, high) in ranges.items():
        whole = dtype_named(tensors[name].dtype).numpy.kind != "f"
        limits = np.array([low, high])
        with np.errstate(all="ignore"):
            stored = limits.astype(tensors[name].dtype).astype(np.float64)
        if not low <= high or (whole and (stored != limits).any()) or not np.isfinite(stored).all():
            raise EpisodeError(
                f"input {name!r} cannot have this range",
                found=f"--range {name}={low:g}:{high:g}",
                expected=f"two numbers of {tensors[name].dtype}, the lower one first",
            )
    episode = random_episode(spec, steps, ranges=ranges, choices=choices)
    free = [t.name for t in spec.inputs if t.name not in ranges and t.dtype != "bool"]
    spans = ", ".join(f"{name}={low:g}:{high:g}" for name, (low, high) in ranges.items())
    if not free:
        return episode, InputsRef("ranges", spans)
    return episode, InputsRef("noise", f"in {', '.join(free)}" + (f"; {spans}" if spans else ""))


def random_episode(
    spec: StepSpec,
    steps: int,
    seed: int = 0,
    ranges: Mapping[str, Range] | None = None,
    choices: Mapping[str, Sequence[int]] | None = None,
) -> Episode:
    """Random inputs for a model.

    Args:
        spec: The signature.
        steps: How many.
        seed: Of the numbers.
        ranges: Lowest and highest number by input. Where none is given, floats are drawn from a
            normal distribution, and integers are one of their choices.
        choices: Numbers of integer inputs, by input; 0 and 1 for others.
    """
    rng = np.random.default_rng(seed)
    inputs = {}
    for tensor in spec.inputs:
        shape = (steps, *tensor.shape)
        dtype: Any = dtype_named(tensor.dtype).numpy
        span = (ranges or {}).get(tensor.name)
        if dtype.kind == "f":
            numbers: Any = rng.uniform(*span, shape) if span else rng.standard_normal(shape)
        elif span:
            low, high = map(int, span)
            numbers = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
        else:
            options = (choices or {}).get(tensor.name, (0, 1))
            numbers = np.array(options)[rng.integers(len(options), size=shape)]
        inputs[tensor.name] = numbers.astype(tensor.dtype)
    return Episode(inputs)
