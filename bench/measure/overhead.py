"""What a counted step costs beside plain ONNX Runtime: same graph, same inputs, one run.

The ways take turns in short bursts, so that a machine whose speed drifts slows all of them alike;
the ratios come from medians of the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime

from stategate.bench.measure.pace import BURST, ROUNDS
from stategate.contract import Budget, Bundle
from stategate.contract.errors import EpisodeError
from stategate.contract.staging import scratch_folder
from stategate.runtime import Session
from stategate.runtime.base.buffers import finiteness
from stategate.runtime.keep.keeper import SnapshotPolicy

_PLAIN = "session: ledger and guards"
_BUDGETED = "session: + write budget"

Step = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of stepping the bundle."""

    name: str  # what it is
    p50_us: float  # median step time over all bursts
    p99_us: float  # 99th percentile
    # median of its fastest burst: the figure that a busy machine disturbs least
    best_round_p50_us: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """Result of a comparison."""

    model: str  # name of the model
    rounds: int  # bursts of each way
    burst: int  # steps in a burst
    ways: tuple[Way, ...]  # every way that was timed
    # median of a session with ledger and write budget over that of the fastest call that ONNX
    # Runtime offers, with buffers bound beforehand and nothing checked or carried
    ratio: float
    session_over_run: float  # median of a plain session over that of ``InferenceSession.run``
    guard_quiet_us: float  # time of the checks for NaN and Inf in a quiet step: inputs and gates
    guard_write_us: float  # the same in a write step: next states too


def measure_overhead(
    path: Path,
    rounds: int = ROUNDS,
    burst: int = BURST,
    report: Callable[[int], None] = lambda _: None,
) -> Overhead:
    """Step a bundle through its golden inputs in every way.

    Args:
        path: The bundle.
        rounds: Bursts of each way; one more, first, is not counted.
        burst: Steps in a burst.
        report: Called with the number of rounds done.

    Raises:
        EpisodeError: The bundle carries no golden episode.
    """
    bundle = Bundle.open(path)
    golden = bundle.golden()
    if golden is None:
        raise EpisodeError("the bundle carries no golden episode", found=path)
    inputs = list(golden)
    with scratch_folder() as folder, ExitStack() as opened:
        ways = _sessions(path, folder, opened)
        ways["onnxruntime: run(), states carried by hand"] = plain_run(bundle)
        bare, barer = bound_calls(bundle)
        ways["onnxruntime: bound, nothing carried"] = bare
        ways["onnxruntime: bound, private call"] = barer
        samples = {name: np.zeros((rounds, burst), dtype=np.int64) for name in ways}
        for i in range(rounds + 1):
            for name, step in ways.items():
                for t in range(burst):
                    feed = inputs[t % len(inputs)]
                    start = perf_counter_ns()
                    step(feed)
                    # The first round warms up: row 0 is overwritten by the second.
                    samples[name][max(0, i - 1), t] = perf_counter_ns() - start
            report(i + 1)
    table = tuple(_way(name, values / 1000.0) for name, values in samples.items())
    p50 = {way.name: way.p50_us for way in table}
    quiet_us, write_us = _guards(bundle)
    return Overhead(
        model=bundle.manifest.model.name,
        rounds=rounds,
        burst=burst,
        ways=table,
        ratio=p50[_BUDGETED] / min(us for name, us in p50.items() if "bound" in name),
        session_over_run=p50[_PLAIN] / p50["onnxruntime: run(), states carried by hand"],
        guard_quiet_us=quiet_us,
        guard_write_us=write_us,
    )


def _sessions(path: Path, folder: Path, opened: ExitStack) -> dict[str, Step]:
    """A session for each option, so that the table says what each costs in a step."""
    generous = Budget(writes_per_1000_steps=1000)
    patient = Budget(deadline_ms=1000)
    never = SnapshotPolicy(folder, every_writes=999_999_999)
    options: dict[str, dict[str, Any]] = {
        _PLAIN: {},
        _BUDGETED: {"budget": generous},
        "session: + deadline": {"budget": patient},
        "session: + on_fault=hold": {"on_fault": "hold"},
        "session: + snapshot policy, none due": {"snapshots": never},
    }

    def stepper(session: Session) -> Step:
        return lambda feed: session.step(**feed)

    return {
        name: stepper(opened.enter_context(Session.open(path, **kwargs)))
        for name, kwargs in options.items()
    }


def _guards(bundle: Bundle, repeats: int = 5000) -> tuple[float, float]:
    """Median time of the finiteness checks in a quiet step and in a write step, in us."""
    step = bundle.manifest.step
    gates = sum(1 for gate in step.gates if gate.kind == "hard")
    seen, states = (
        [finiteness(np.ones(t.shape, t.dtype).reshape(-1)) for t in tensors]
        for tensors in ((*step.inputs, *step.outputs), step.states)
    )
    times = np.zeros((2, repeats))
    for row, looks in enumerate((seen, seen + states)):
        for t in range(repeats):
            start = perf_counter_ns()
            for look in looks:
                look()
            for _ in range(gates):
                isfinite(1.0)
            times[row, t] = (perf_counter_ns() - start) / 1000.0
    quiet_us, write_us = np.median(times, axis=1)
    return float(quiet_us), float(write_us)


def _way(name: str, us: np.ndarray[Any, np.dtype[np.float64]]) -> Way:
    p50, p99 = np.percentile(us, (50, 99))
    return Way(name, float(p50), float(p99), float(np.median(us, axis=1).min()))


def _ort(bundle: Bundle) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = bundle.read(bundle.manifest.step_graph.file)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _fixed(bundle: Bundle) -> dict[str, Any]:
    """Everything but the inputs: constants, thresholds, and states at zero."""
    step = bundle.manifest.step
    fixed: dict[str, Any] = {c.name: np.full(c.shape, c.value, c.dtype) for c in step.fixed_inputs}
    return fixed | {s.name: np.zeros(s.shape, s.dtype) for s in step.states}


def plain_run(bundle: Bundle) -> Step:
    """A user's own loop: feed a dict, take a list, carry the states."""
    session = _ort(bundle)
    feed = _fixed(bundle)
    names = [node.name for node in session.get_outputs()]
    carried = [(s.name, names.index(s.next_name)) for s in bundle.manifest.states]

    def step(inputs: dict[str, Any]) -> object:
        results = session.run(names, {**feed, **inputs})
        for name, position in carried:
            feed[name] = results[position]
        return results

    return step


def bound_calls(bundle: Bundle) -> tuple[Step, Step]:
    """The least that ONNX Runtime can do: everything bound, nothing carried, nothing counted.

    Returns:
        Its public call, and the private one underneath, which some users reach for.
    """
    session = _ort(bundle)
    binding = session.io_binding()
    kept = _fixed(bundle)
    buffers = {t.name: np.zeros(t.shape, t.dtype) for t in bundle.manifest.inputs}
    for name, array in {**kept, **buffers}.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for name, spec in bundle.manifest.step.graph_outputs().items():
        kept[name] = np.zeros(spec.shape, spec.dtype)
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(kept[name]))
    inner, inner_binding = session._sess, binding._iobinding

    def public(inputs: dict[str, Any]) -> object:
        for name, array in inputs.items():
            np.copyto(buffers[name], array)
        session.run_with_iobinding(binding)
        return kept  # the arrays must outlive the binding

    def private(inputs: dict[str, Any]) -> object:
        for name, array in inputs.items():
            np.copyto(buffers[name], array)
        inner.run_with_iobinding(inner_binding, None)
        return kept

    return public, private
