"""What the untouched file answers: ONNX Runtime, called as its author would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from stategate.contract import Bundle, Episode
from stategate.runtime import Session

Arrays = dict[str, NDArray[Any]]
_CONTEXT = ".context"


def _opened(source: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _opened_for_any_length(path: Path) -> onnxruntime.InferenceSession:
    """The file, without the sizes that it says its inputs have: some are written for one frame."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return _opened(model.SerializeToString())


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
    file, manifest = _opened_for_any_length(path), Bundle.open(bundle).manifest
    fixed = {c.name: c.array() for c in manifest.constants}
    with Session.open(bundle) as session:  # states that the file declares itself
        states = {s.name: session.state(s.name).copy() for s in manifest.states}
    fixed |= {v.name: states[v.name] for v in file.get_inputs() if v.name in states}
    outputs = [t.name for t in manifest.outputs]

    def run(steps: int) -> Arrays:
        feed = {
            name: np.concatenate(list(array[:steps]), time_axes[name])
            if name in time_axes
            else array[0]
            for name, array in inputs.inputs.items()
        }
        return dict(zip(outputs, file.run(outputs, {**feed, **fixed}), strict=True))

    along = [name for name in outputs if name in time_axes]
    whole = run(inputs.steps)
    answers = [
        {name: np.take(whole[name], [i], time_axes[name]) for name in along}
        for i in range(inputs.steps)
    ]
    for i, answer in enumerate(answers):
        if len(along) < len(outputs):  # some have only the newest answer of a call
            answer |= {n: array for n, array in run(i + 1).items() if n not in along}
    return answers
