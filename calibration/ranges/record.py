"""Ranges of a float step's tensors, from its own closed loop.

ONNX Runtime's calibrators read inputs from a list and cannot feed a state back, so they see a
memory that is empty for ever (onnxruntime issue 19601). Here the float graph of a sealed bundle is
rolled through whole episodes on its own state, with the tensors of interest as further outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from stategate.calibration.cluster import Cluster
from stategate.calibration.drift.judge import can_judge
from stategate.calibration.episodes import roll_out
from stategate.calibration.ranges.statistics import Statistics, decade_of
from stategate.calibration.recordings import Episodes, on_disk
from stategate.common import console
from stategate.common.onnx_runtime import one_thread
from stategate.contract import Bundle, Episode, EpisodeSet, StepSpec
from stategate.contract.bundle import folder_of
from stategate.contract.episodes import EpisodeFile
from stategate.contract.errors import CalibrationError
from stategate.contract.precision import RangeRecord, TensorRange
from stategate.contract.write_rule import opens
from stategate.export.precision import with_constant_weights
from stategate.runtime.base.buffers import initial_states

_BUFFERED_STEPS = 64
_PROJECTIONS = ("MatMul", "Gemm", "Conv")

Arrays = dict[str, np.ndarray]


class Roller:
    """A bundle's float step, with more of its tensors to be seen."""

    def __init__(self, bundle: Bundle, graph: bytes | None = None) -> None:
        self._bundle, self._graph = bundle, graph
        manifest = bundle.manifest
        step = manifest.step_graph
        if not can_judge(bundle) or manifest.sessions != 1:
            raise CalibrationError(
                "ranges are taken from the sealed float model alone",
                found=f"{step.precision}, {manifest.standing}, {manifest.sessions} sessions",
                expected="a sealed bundle in float32 for one session",
                remedy="export it once without --precision and without --sessions",
            )
        model = onnx.load_model_from_string(self._graph or bundle.read(step.file))
        self.model_sha256 = manifest.model.sha256
        self.spec: StepSpec = manifest.step
        self.quantisable = _projected(model)
        self._watched = _watched(model, self.spec, self.quantisable)
        stored = initial_states(bundle)
        self._initial: Arrays = {
            s.name: stored.get(s.name, np.zeros(s.shape, s.dtype)) for s in manifest.states
        }
        takes = {value.name for value in model.graph.input}
        self._fixed = {
            c.name: np.full(c.shape, c.value, np.dtype(c.dtype))
            for c in self.spec.fixed_inputs
            if c.name in takes  # constants may be part of the graph
        }
        ends = {value.name for value in (*model.graph.output, *model.graph.input)}
        for name in self._watched:
            # An output of the graph already, or an input, is seen without being listed again.
            if name not in ends:
                model.graph.output.append(
                    onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                )
        self._outputs = [value.name for value in model.graph.output]
        options = one_thread(onnxruntime.SessionOptions())
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __reduce__(self) -> tuple[type[Roller], tuple[Bundle, bytes | None]]:
        """Goes to a cluster as its bundle, whose files lie there under the same path."""
        return Roller, (self._bundle, self._graph)

    def roll(
        self, pieces: Iterable[Episode], report: Callable[[int], None] = lambda _: None
    ) -> dict[str, Statistics]:
        """Statistics of every watched tensor over one episode, from the initial state.

        Returns:
            Statistics by tensor.
        """
        statistics = {name: Statistics() for name in self._watched}
        buffered: dict[str, list[np.ndarray]] = {name: [] for name in self._watched}
        begun = 0

        def flush(end: int) -> None:
            nonlocal begun
            for name, steps in buffered.items():
                values = np.stack(steps)
                finite = np.isfinite(values).reshape(len(steps), -1).all(axis=1)
                if not finite.all():
                    raise CalibrationError(
                        f"tensor {name!r} is not finite",
                        found=f"NaN or infinity at step {begun + int(np.argmin(finite))}",
                        expected="finite numbers, in the recording and in all that follows from it",
                        remedy="cut the bad stretch out of the recording",
                    )
                statistics[name].add(values, begun)
                steps.clear()
            begun = end

        states, t = dict(self._initial), 0
        for piece in pieces:
            piece.check(self.spec)
            for inputs in piece:
                feed = {**inputs, **self._fixed, **states}
                outputs = self._session.run(self._outputs, feed)
                tensors = feed | dict(zip(self._outputs, outputs, strict=True))
                states = self._after(states, tensors)
                for name, steps in buffered.items():
                    steps.append(tensors[name])
                t += 1
                # Statistics are kept by decades of steps, so a block ends where a decade does.
                if t == begun + _BUFFERED_STEPS or decade_of(t - 1) != decade_of(t):
                    flush(t)
                report(t)
        if begun < t:
            flush(t)
        return statistics

    def _after(self, states: Arrays, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """What the runtime carries on: a state behind a closed gate stays as it was."""
        closed = {
            name
            for name, threshold in self.spec.thresholds.items()
            if not opens(tensors[name], threshold).any()
        }
        return {
            s.name: states[s.name] if s.gate in closed else tensors[s.next_name]
            for s in self.spec.states
        }


def measured(
    roller: Roller,
    episodes: EpisodeSet,
    cluster: Cluster | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> RangeRecord:
    """Ranges over several episodes, each from the initial state and read a block at a time."""
    total = roll_out(episodes, partial(_rolled, roller), cluster, report)
    inputs = {tensor.name for tensor in roller.spec.inputs}
    for name in sorted(roller.quantisable | (inputs & set(total))):
        if total[name].constant:
            raise CalibrationError(
                f"{'input' if name in inputs else 'tensor'} {name!r} has no range",
                found=f"{total[name].all.low:g} in all of {episodes.steps} steps",
                expected="a signal that changes",
                remedy="record episodes in which it does what it does in use",
            )
    tensors = tuple(
        TensorRange(
            name, total[name].limits() if name in roller.quantisable else {}, total[name].horizons()
        )
        for name in total
    )
    return RangeRecord(roller.model_sha256, episodes.names, episodes.steps, tensors)


def _rolled(
    roller: Roller, file: EpisodeFile, report: Callable[[int], None]
) -> dict[str, Statistics]:
    return roller.roll(file.blocks(), report)


def _projected(model: onnx.ModelProto) -> set[str]:
    """Tensors that are multiplied with constant weights: what a plan may round."""
    constants = {tensor.name for tensor in model.graph.initializer}
    # Data has the type of its weight, and only float32 is rounded.
    weights = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return {
        node.input[at]
        for node in model.graph.node
        if node.op_type in _PROJECTIONS and not node.domain
        for at in (0, 1)
        if node.input[1 - at] in weights
    } - constants


def _watched(model: onnx.ModelProto, spec: StepSpec, projected: set[str]) -> list[str]:
    """Float tensors worth looking at: projected ones, inputs, outputs, gates and next states."""
    ends = {**{t.name: t for t in spec.inputs}, **spec.graph_outputs()}
    watched = {name for name, tensor in ends.items() if tensor.dtype == "float32"} | projected
    inner = [name for node in model.graph.node for name in node.output]
    return [name for name in dict.fromkeys([*spec.graph_inputs(), *inner]) if name in watched]


def measure_ranges(
    bundle: str | Path | Bundle,
    episodes: Episodes,
    *,
    cluster: Cluster | None = None,
    progress: console.Progress | None = None,
) -> RangeRecord:
    """Measure how large the tensors of a float bundle become, in closed loop on its own state.

    Args:
        bundle: In float32, exported or adopted; the record is good for its model's weights.
        episodes: Recordings of any length, read a block at a time.
        cluster: A Dask cluster that rolls them; it finds bundle and files under the same paths.
        progress: Called with stage, steps done and steps in all.

    Raises:
        BundleError: It is no bundle.
        EpisodeError: An episode does not fit the model.
        CalibrationError: Something is not finite, or a tensor never changes.
    """
    opened = Bundle.open(folder_of(bundle).resolve())  # where a cluster finds it too
    manifest = opened.manifest
    raw = opened.read(manifest.step_graph.file)
    graph, _ = with_constant_weights(raw, manifest.step, manifest.model.family)
    roller = Roller(opened, graph)
    with (
        on_disk(episodes) as files,
        console.progress(files.steps, "rolling", listener=progress) as report,
    ):
        return measured(roller, files, cluster, report)
