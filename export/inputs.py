"""What a check steps a model through: a recording, a benchmark, declared ranges, or noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from stategate.contract import Episode, StepSpec
from stategate.contract.dtypes import dtype_named
from stategate.contract.episodes import load_stream
from stategate.contract.errors import EpisodeError
from stategate.contract.receipts import InputsRef
from stategate.export.frontends.domains import Domain, domains

Range = tuple[float, float]


def recorded(
    source: str | Path | Episode, steps: int, ranges: Mapping[str, Range] | None = None
) -> tuple[Episode, str]:
    """An episode of a program, or one recording of a file or folder; and its name."""
    if ranges:
        raise EpisodeError(
            "inputs are recorded, or drawn from ranges, and not both",
            found=f"a recording, and --range for {', '.join(ranges)}",
            remedy="leave one of them out",
        )
    if isinstance(source, Episode):
        source.check_one_stream()
        source = replace(source, resets=())
        return source, source.provenance or "an episode in memory"
    return load_stream(source, steps), Path(source).name


def drawn(
    spec: StepSpec,
    steps: int,
    ranges: Mapping[str, Range],
    graph: onnx.ModelProto,
) -> tuple[Episode, InputsRef]:
    """Random inputs: even in a range that the user declared, as the graph says, or else noise."""
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
    fits = domains(graph, [t for t in spec.inputs if t.name not in ranges])
    episode = random_episode(spec, steps, ranges=ranges, fits=fits)
    free = [t.name for t in spec.inputs if t.name not in {*ranges, *fits} and t.dtype != "bool"]
    spans = [f"{name}={low:g}:{high:g}" for name, (low, high) in ranges.items()]
    fitting = [domain.words for domain in fits.values()]
    if free:
        return episode, InputsRef("noise", "; ".join([f"in {', '.join(free)}", *fitting, *spans]))
    return episode, InputsRef("fitting" if fitting else "ranges", ", ".join([*fitting, *spans]))


def random_episode(
    spec: StepSpec,
    steps: int,
    seed: int = 0,
    ranges: Mapping[str, Range] | None = None,
    fits: Mapping[str, Domain] | None = None,
) -> Episode:
    """Random inputs for a model."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for tensor in spec.inputs:
        shape = (steps, *tensor.shape)
        dtype: Any = dtype_named(tensor.dtype).numpy
        span = (ranges or {}).get(tensor.name)
        domain = (fits or {}).get(tensor.name)
        if domain is not None and not span:
            numbers: Any = domain.draw(rng, shape)
        elif dtype.kind == "f":
            numbers = rng.uniform(*span, shape) if span else rng.standard_normal(shape)
        elif span:
            low, high = map(int, span)
            numbers = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
        else:
            numbers = rng.integers(2, size=shape)
        inputs[tensor.name] = numbers.astype(tensor.dtype)
    return Episode(inputs)
