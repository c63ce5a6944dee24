"""What a counted step costs beside plain ONNX Runtime: same graph, same inputs, one run.

The ways take turns in short bursts, so that a machine whose speed drifts slows all of them alike;
the ratios come from medians of the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime

from stategate.contract import Bundle
from stategate.contract.errors import EpisodeError
from stategate.runtime import Session

ROUNDS = 20
BURST = 500

Step = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of stepping the bundle.

    Attributes:
        name: What it is.
        p50_us: Median step time over all bursts.
        p99_us: 99th percentile.
        best_round_p50_us: Median of its fastest burst: the figure that a busy machine disturbs
            least.
    """

    name: str
    p50_us: float
    p99_us: float
    best_round_p50_us: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """Result of a comparison.

    Attributes:
        model: Name of the model.
        rounds: Bursts of each way.
        burst: Steps in a burst.
        ways: Session first.
        session_over_run: Median of the session's step over that of ``InferenceSession.run``.
        session_over_bound: The same over a bare call with buffers bound beforehand.
    """

    model: str
    rounds: int
    burst: int
    ways: tuple[Way, ...]
    session_over_run: float
    session_over_bound: float


def measure_overhead(
    path: Path,
    rounds: int = ROUNDS,
    burst: int = BURST,
    report: Callable[[int], None] = lambda _: None,
) -> Overhead:
    """Step a bundle through its golden inputs in three ways.

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
    with Session.open(path) as session:
        ways: dict[str, Step] = {
            "stategate Session.step": lambda feed: session.step(**feed),
            "onnxruntime InferenceSession.run": _plain(bundle),
            "onnxruntime, buffers bound, state not carried": _bound(bundle),
        }
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
    ours, plain, bound = (way.p50_us for way in table)
    return Overhead(bundle.manifest.model.name, rounds, burst, table, ours / plain, ours / bound)


def _way(name: str, us: np.ndarray[Any, np.dtype[np.float64]]) -> Way:
    p50, p99 = np.percentile(us, (50, 99))
    return Way(name, float(p50), float(p99), float(np.median(us, axis=1).min()))


def _ort(bundle: Bundle) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = bundle.read(bundle.manifest.graphs[0].file)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _fixed(bundle: Bundle) -> dict[str, Any]:
    """Everything but the inputs: constants, thresholds, and states at zero."""
    step = bundle.manifest.step
    fixed: dict[str, Any] = {c.name: np.full(c.shape, c.value, c.dtype) for c in step.fixed_inputs}
    return fixed | {s.name: np.zeros(s.shape, s.dtype) for s in step.states}


def _plain(bundle: Bundle) -> Step:
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


def _bound(bundle: Bundle) -> Step:
    """The least that ONNX Runtime can do: everything bound, nothing carried, nothing counted."""
    session = _ort(bundle)
    binding = session.io_binding()
    kept = _fixed(bundle)
    buffers = {t.name: np.zeros(t.shape, t.dtype) for t in bundle.manifest.inputs}
    for name, array in {**kept, **buffers}.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for name, spec in bundle.manifest.step.graph_outputs().items():
        kept[name] = np.zeros(spec.shape, spec.dtype)
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(kept[name]))

    def step(inputs: dict[str, Any]) -> object:
        for name, array in inputs.items():
            np.copyto(buffers[name], array)
        session.run_with_iobinding(binding)
        return kept

    return step
