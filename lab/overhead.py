"""What each option of a session costs: steps timed in turns beside plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lab.pace import Report, Step, golden_inputs, stepper
from stategate.cli.options import COUNT, bundle_verb, option, out_option
from stategate.cli.show import show
from stategate.common.console import progress
from stategate.common.onnx_runtime import one_thread
from stategate.common.timing import TimedCall, time_in_turns
from stategate.contract import Budget, Bundle
from stategate.contract.durable import check_writable
from stategate.contract.staging import scratch_folder
from stategate.runtime import Session
from stategate.runtime.base.buffers import Array, finiteness
from stategate.runtime.check.full_pool import begun
from stategate.runtime.keep.policy import SnapshotPolicy

_PLAIN = "session: ledger and guards"
_BUDGETED = "session: + write budget"
_RUN = "onnxruntime: run(), states carried by hand"
# Never due, never exceeded, never late: what an option costs while it has nothing to do.
_OPTIONS: dict[str, dict[str, Any]] = {
    _PLAIN: {},
    _BUDGETED: {"budget": Budget(writes_per_1000_steps=1000)},
    "session: + deadline": {"budget": Budget(deadline_ms=1000)},
    "session: + on_fault=hold": {"on_fault": "hold"},
}
_GUARD_LOOKS = 5000


@dataclass(frozen=True, slots=True)
class Way:
    """One way of stepping the bundle."""

    name: str  # what it is
    p50_us: float  # median step time over all bursts
    p99_us: float  # 99th percentile
    best_round_p50_us: float  # median of the fastest burst, which a busy machine disturbs least


@dataclass(frozen=True, slots=True)
class Overhead:
    """What each option of a session costs, in one run."""

    model: str  # name of the model
    rounds: int  # bursts of each way
    burst: int  # steps in a burst
    ways: tuple[Way, ...]  # every way that was timed
    # median of a session with ledger and write budget over that of the fastest call that ONNX
    # Runtime offers, with buffers bound beforehand and nothing checked or carried
    ratio: float
    session_over_run: float  # median of a plain session over that of `InferenceSession.run`
    guard_quiet_us: float  # the checks for NaN and Inf in a quiet step: inputs and gates
    guard_write_us: float  # the same in a write step: next states too


def measure_overhead(
    path: Path, rounds: int, burst: int, report: Report = lambda _: None
) -> Overhead:
    """Step a bundle through its golden inputs in every way that there is.

    Args:
        path: The bundle.
        rounds: Bursts of each way; one more, first, is not counted.
        burst: Steps in a burst.
        report: Called with the number of rounds done.

    Raises:
        EpisodeError: The bundle carries no golden episode.
    """
    bundle = Bundle.open(path)
    inputs = golden_inputs(bundle)
    with scratch_folder() as folder, ExitStack() as opened:
        options = dict(_OPTIONS)
        never = SnapshotPolicy(folder, every_writes=999_999_999)
        options["session: + snapshot policy, none due"] = {"snapshots": never}
        steps: dict[str, Step] = {
            name: stepper(begun(opened.enter_context(Session.open(path, **kwargs))))
            for name, kwargs in options.items()
        }
        steps[_RUN] = plain_run(bundle)
        bound, private = bound_calls(bundle)
        steps["onnxruntime: bound, nothing carried"] = bound
        steps["onnxruntime: bound, private call"] = private
        calls = {name: TimedCall(step, inputs) for name, step in steps.items()}
        spans_ns = time_in_turns(calls, rounds=rounds, burst=burst, report=report)
    ways = tuple(_way(name, spans / 1000) for name, spans in spans_ns.items())
    p50 = {way.name: way.p50_us for way in ways}
    quiet_us, write_us = _guards(bundle)
    return Overhead(
        model=bundle.manifest.model.name,
        rounds=rounds,
        burst=burst,
        ways=ways,
        ratio=p50[_BUDGETED] / min(us for name, us in p50.items() if "bound" in name),
        session_over_run=p50[_PLAIN] / p50[_RUN],
        guard_quiet_us=quiet_us,
        guard_write_us=write_us,
    )


def _way(name: str, us: Array) -> Way:
    p50, p99 = np.percentile(us, (50, 99))
    return Way(name, float(p50), float(p99), float(np.median(us, axis=1).min()))


def _guards(bundle: Bundle) -> tuple[float, float]:
    """Median time of the finiteness checks in a quiet step and in a write step, in us."""
    step = bundle.manifest.step
    gates = sum(gate.kind == "hard" for gate in step.gates)
    quiet, states = (
        [finiteness(np.ones(t.shape, t.dtype).reshape(-1)) for t in tensors]
        for tensors in ((*step.inputs, *step.outputs), step.states)
    )

    def look(checks: list[Callable[[], object]]) -> None:
        for check in checks:
            check()
        for _ in range(gates):
            isfinite(1.0)

    calls = {name: TimedCall(look, [c]) for name, c in (("q", quiet), ("w", quiet + states))}
    spans_ns = time_in_turns(calls, rounds=1, burst=_GUARD_LOOKS)
    quiet_us, write_us = (float(np.median(spans)) / 1000 for spans in spans_ns.values())
    return quiet_us, write_us


def _ort(bundle: Bundle) -> Any:
    options = one_thread(onnxruntime.SessionOptions())
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
    arrays = _fixed(bundle)
    buffers = {t.name: np.zeros(t.shape, t.dtype) for t in bundle.manifest.inputs}
    for name, array in {**arrays, **buffers}.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for name, spec in bundle.manifest.step.graph_outputs().items():
        arrays[name] = np.zeros(spec.shape, spec.dtype)
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name]))
    inner, inner_binding = session._sess, binding._iobinding

    def public(inputs: dict[str, Any]) -> object:
        for name, array in inputs.items():  # in place: another call would count as the engine's
            np.copyto(buffers[name], array)
        session.run_with_iobinding(binding)
        return arrays  # the arrays must outlive the binding

    def private(inputs: dict[str, Any]) -> object:
        for name, array in inputs.items():
            np.copyto(buffers[name], array)
        inner.run_with_iobinding(inner_binding, None)
        return arrays

    return public, private


@bundle_verb()
@option("--rounds", type=COUNT, default=20, help="Bursts of each.")
@option("--burst", type=COUNT, default=500, help="Steps in a burst.")
@out_option("Folder for overhead.json.", required=False)
def overhead(bundle: Path, rounds: int, burst: int, out: Path | None) -> None:
    """Compare a counted step of BUNDLE with plain ONNX Runtime, in turns and in one run.

    \b
    Example:
      python -m lab overhead build/aura --out build/bench
    """
    path = out and out / "overhead.json"
    if path:
        check_writable(path)

    with progress(rounds + 1, "measuring") as report:
        result = measure_overhead(bundle, rounds, burst, report)
    show(result, _lines(result), path)


def _lines(result: Overhead) -> Iterator[str]:
    for way in result.ways:
        yield (
            f"{way.name:<44} p50 {way.p50_us:6.1f} us  p99 {way.p99_us:6.1f} us  "
            f"best round {way.best_round_p50_us:6.1f} us"
        )
    yield (
        f"checks for NaN and Inf: {result.guard_quiet_us:.2f} us in a quiet step, "
        f"{result.guard_write_us:.2f} us in a write"
    )
    yield f"session with budget over the fastest bound call: {result.ratio:.2f}"
    yield f"plain session over run(): {result.session_over_run:.2f}"
