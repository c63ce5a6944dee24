"""What the untouched file answers: ONNX Runtime, called as its author would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stategate.contract import Bundle, Episode
from stategate.runtime import Session

Arrays = dict[str, NDArray[Any]]
_CONTEXT = ".context"


def _opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_a_loop(path: Path, bundle: Path, inputs: Episode) -> list[Arrays]:
    """Outputs of each step of an episode, the states handed over by hand."""
    file, manifest = _opened(path), Bundle.open(bundle).manifest
    fixed = {c.name: c.array() for c in manifest.constants}
    pairs = {s.name: s.next_name for s in manifest.states if not s.name.endswith(_CONTEXT)}
    with Session.open(bundle) as session:
        states = {s.name: session.state(s.name).copy() for s in manifest.states}
    outputs = [t.name for t in manifest.outputs]
    names = [*dict.fromkeys([*outputs, *pairs.values()])]
    answers = []
    for now in inputs:
        feed = {**now, **fixed, **states}
        for context in [name for name in states if name.endswith(_CONTEXT)]:
            name, before = context.removesuffix(_CONTEXT), feed.pop(context)
            feed[name] = np.concatenate([before, feed[name]], axis=-1)
            states[context] = feed[name][..., -before.shape[-1] :]
        results = dict(zip(names, file.run(names, feed), strict=True))
        states |= {state: results[output] for state, output in pairs.items()}
        answers.append({name: results[name] for name in outputs})
    return answers


def in_one_call(
    path: Path, bundle: Path, inputs: Episode, time_axes: Mapping[str, int]
) -> list[Arrays]:
    """Outputs of each step of an episode, all of which the file gets at once.

    Args:
        path: The untouched file, which keeps its memory inside.
        bundle: The bundle that is made of it, whose steps are single frames.
        inputs: The episode.
        time_axes: Axis of time by input and output of the file.
    """
    file, manifest = _opened(path), Bundle.open(bundle).manifest
    feed = {c.name: c.array() for c in manifest.constants}
    for name, array in inputs.inputs.items():
        feed[name] = np.concatenate(list(array), time_axes[name]) if name in time_axes else array[0]
    outputs = [t.name for t in manifest.outputs if t.name in time_axes]
    wholes = dict(zip(outputs, file.run(outputs, feed), strict=True))
    return [
        {name: np.take(whole, [i], time_axes[name]) for name, whole in wholes.items()}
        for i in range(inputs.steps)
    ]
