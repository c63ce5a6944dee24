"""Building a TensorRT plan, on the device that will load it.

One source for TensorRT 8.6 to 11.4 and TensorRT-RTX: what a release lacks is asked for by name and
left out, never called (`tests/tensorrt` holds every call against tables of those releases). Types
stand in the graph, so no calibrator and no precision flag is used where the network can be strongly
typed. TF32 is off: it rounds the factors of a float32 product to ten bits, and a recurrence feeds
that back for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from stategate.contract.bundle import sha256
from stategate.contract.errors import BuildError, StategateError
from stategate.export.tensorrt.generations import Generation, generation_of
from stategate.runtime.engines.tensorrt_api import make_with_log, refusal

Report = Callable[[int], None]
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Settings:
    """What a build may use."""

    workspace_bytes: int  # scratch memory of the builder
    # measured times of an earlier build of the same graph on the same device. Then none may be
    # missing: with the same times the builder chooses the same kernels.
    timing_cache: bytes | None = None
    strip_weights: bool = False  # leave weights out of the plan; they come from the graph at load


@dataclass(frozen=True, slots=True)
class Built:
    """What came of a build."""

    plan: bytes  # the serialised engine
    flags: tuple[str, ...]  # of the builder
    timing_cache: bytes  # times that it measured; empty where it keeps none


def build_plan(trt: Any, graph: bytes, settings: Settings, report: Report, logger: Any) -> Built:
    """Have TensorRT parse a graph and build a plan of it."""
    generation = generation_of(trt.__version__, trt.__name__)
    builder: Any = make_with_log(trt.Builder, logger)
    flags, bits = [], 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if flag is not None and (name == "EXPLICIT_BATCH" or generation.strongly_typed):
            bits |= 1 << int(flag)
            flags.append(name)
    network: Any = builder.create_network(bits)
    parser: Any = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise BuildError(
            f"TensorRT {trt.__version__} cannot parse the graph",
            found="; ".join(_parser_errors(parser)),
            expected="a graph that passed stategate's own check",
            remedy="report it with this message: the check should have said so",
        )
    config: Any = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    flags.append("noTF32")
    for name in builder_flags(graph, generation, settings):
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise BuildError(
                f"TensorRT {trt.__version__} has no builder flag {name}",
                expected="TensorRT 10 or newer for stripped weights",
                remedy="build without --strip-weights",
            )
        config.set_flag(flag)
        flags.append(name)
    if "FP16" in flags:
        _obey_types(trt, network)
    cache: Any = None
    if trt.__name__ == "tensorrt":  # TensorRT-RTX measures nothing, and calls its cache obsolete
        cache = config.create_timing_cache(settings.timing_cache or b"")
        if not config.set_timing_cache(cache, False):
            raise _refused("TensorRT does not take the timing cache", logger)
        if settings.timing_cache and hasattr(trt.BuilderFlag, "ERROR_ON_TIMING_CACHE_MISS"):
            config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    monitor = _monitor(trt, report)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused("TensorRT cannot build the graph", logger)
    report(_PERCENT)
    times = bytes(cache.serialize()) if cache is not None else b""
    if settings.timing_cache and sha256(times) != sha256(settings.timing_cache):
        raise BuildError(
            "the build would change the pinned timing cache",
            found=f"sha256 {sha256(times)[:12]} after it",
            expected=f"sha256 {sha256(settings.timing_cache)[:12]}",
            remedy="build with --new-timing-cache; kernels may then differ from the last build's",
        )
    return Built(bytes(plan), tuple(flags), times)


def workspace_bytes(memory_bytes: int | None) -> int:
    """Scratch memory for the builder: an eighth of the device's, at most a GiB.

    On a Jetson the builder shares its memory with all else, and steps of the sizes that stategate
    is for need a few MiB. Where the memory is not known, 256 MiB.
    """
    return min(memory_bytes // 8, 1 << 30) if memory_bytes else 256 << 20


def builder_flags(graph: bytes, generation: Generation, settings: Settings) -> list[str]:
    """Builder flags of a graph, by name; none of them is about types where it is strongly typed."""
    flags = ["STRIP_PLAN", "REFIT_IDENTICAL"] if settings.strip_weights else []
    if not generation.strongly_typed:
        model = onnx.load_model_from_string(graph)
        operators = {node.op_type for node in model.graph.node}
        halves = {t.data_type for t in model.graph.initializer} | {
            a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute
        }
        if "QuantizeLinear" in operators:
            flags.append("INT8")
        if onnx.TensorProto.FLOAT16 in halves:
            flags += ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    return flags


def _obey_types(trt: Any, network: Any) -> None:
    """Ask a release that chooses types itself for those of the graph."""
    for number in range(network.num_layers):
        layer: Any = network.get_layer(number)
        kind = layer.get_output(0).dtype
        if kind in (trt.DataType.FLOAT, trt.DataType.HALF):
            layer.precision = kind
            layer.set_output_type(0, kind)


def _parser_errors(parser: Any) -> list[str]:
    errors = []
    for number in range(parser.num_errors):
        error: Any = parser.get_error(number)
        name = error.node_name() if hasattr(error, "node_name") else f"node {error.node()}"
        errors.append(f"{name}: {error.desc()}")
    return errors


def _refused(what: str, log: Any) -> StategateError:
    remedy = "too little memory or workspace may be the cause"
    return refusal(what, log, remedy=remedy, kind=BuildError)


def _monitor(trt: Any, report: Report) -> Any:
    """Progress of the outermost phase; None where the release has no such interface."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self.steps.get(phase_name)
            if steps:
                report(min(_PERCENT * (step + 1) // steps, _PERCENT))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
