"""Several ONNX nodes of a LEAPP pipeline as one graph: its edges become values, or states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from stategate.contract.errors import ExportError
from stategate.contract.failures import failures, first_line
from stategate.export.frontends.file_reference import Plain
from stategate.export.frontends.untrusted import run_within_limits, unoptimised

Edges = Sequence[tuple[str, str]]  # source and target, each as NODE/TENSOR


@dataclass(frozen=True, slots=True)
class Merged:
    """One graph, and what the ports of its nodes are called in it."""

    model: onnx.ModelProto
    names: dict[str, str]  # of inputs and outputs of the graph, by port
    states: dict[str, str]  # output by input
    step: Plain  # the nodes' own files, one after the other, by names of the graph


def merge(
    nodes: Mapping[str, onnx.ModelProto], data: Edges, feedback: Edges, outputs: set[str]
) -> Merged:
    """Join the nodes; what only travels between them is no output."""
    models = _of_one_opset(nodes)
    sources = {v.name or "": v for m in models.values() for v in m.graph.outputs}
    targets = {
        name: v
        for m in models.values()
        for v in m.graph.inputs
        if (name := v.name or "") not in m.graph.initializers
    }
    _check_edges(list(nodes), data, feedback, sources, targets)
    inner = {source for source, _ in data} | {source for source, _ in feedback}
    free = [port for port in targets if port not in {target for _, target in data}]
    answers = [port for port in sources if port in outputs or port not in inner]
    nexts = {f"{target}.next": source for source, target in feedback}
    names = _names([*free, *answers], nexts)
    for source, target in data:
        value = targets[target]
        value.replace_all_uses_with(sources[source], replace_graph_outputs=True)
        # An input that a node hands on unchanged is the source's value from here on.
        sources = {port: sources[source] if v is value else v for port, v in sources.items()}
    results = {port: sources[port] for port in answers}
    results |= {port: sources[source] for port, source in nexts.items()}
    graph = ir.Graph([], [], nodes=[], name="pipeline")
    for model in models.values():
        graph.opset_imports.update(model.graph.opset_imports)
        body, weights = [*model.graph], [*model.graph.initializers.values()]
        # A value belongs to one graph at a time.
        for members in (model.graph.inputs, model.graph.outputs, model.graph.initializers):
            members.clear()
        model.graph.remove(body)
        graph.extend(body)
        for weight in weights:
            graph.register_initializer(weight)
    graph.inputs.extend(targets[port] for port in free)
    for port in free:
        targets[port].name = names[port]
    for port, value in results.items():
        # A copy: one value may be an output, feed the next step twice, or be an input itself.
        copy = ir.node("Identity", [value])
        copy.outputs[0].name, copy.outputs[0].type = names[port], value.type
        copy.outputs[0].shape = value.shape
        graph.append(copy)
        graph.outputs.append(copy.outputs[0])
    version = max(model.ir_version for model in models.values())
    merged = ir.to_proto(ir.Model(graph, ir_version=version))
    entries = {entry.key: entry.value for node in nodes.values() for entry in node.metadata_props}
    onnx.helper.set_model_props(merged, entries)
    states = {names[target]: names[f"{target}.next"] for _, target in feedback}
    return Merged(merged, names, states, _plain(nodes, data, nexts, names))


def _of_one_opset(nodes: Mapping[str, onnx.ModelProto]) -> dict[str, ir.Model]:
    """The nodes without functions, in the newest operator set among them, values as NODE/NAME."""
    try:
        inlined = {name: onnx.inliner.inline_local_functions(m) for name, m in nodes.items()}
        newest = max(_opset(model) for model in inlined.values())
        same = {
            name: model
            if _opset(model) == newest
            else onnx.version_converter.convert_version(model, newest)
            for name, model in inlined.items()
        }
        return {
            name: ir.from_proto(onnx.compose.add_prefix(model, f"{name}/"))
            for name, model in same.items()
        }
    except failures() as problem:
        opsets = ", ".join(f"{name} {_opset(model)}" for name, model in nodes.items())
        raise ExportError(
            "the nodes cannot be written in one operator set of ONNX",
            found=f"{opsets}: {first_line(problem)}",
            expected="one operator set for all nodes",
            remedy="export all nodes with the same export_with",
        ) from problem


def _opset(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _check_edges(
    order: list[str],
    data: Edges,
    feedback: Edges,
    sources: Mapping[str, ir.Value],
    targets: Mapping[str, ir.Value],
) -> None:
    for kind, edges in (("data_flow", data), ("feedback_flow", feedback)):
        for source, target in edges:
            edge = f"{kind} {source} -> {target}"
            for port, ports in ((source, sources), (target, targets)):
                if port not in ports:
                    raise ExportError(
                        "an edge of the LEAPP graph leads nowhere",
                        found=f"{port} in {edge}",
                        expected=", ".join(ports),
                    )
            runs, reads = (order.index(port.partition("/")[0]) for port in (source, target))
            # LEAPP runs nodes in the order of the file. Its own runtime would hand this value over
            # one step later or earlier than the kind of edge says.
            if kind == "data_flow" and runs >= reads:
                raise ExportError(
                    "data flows in a circle, or to a node that runs before",
                    found=f"{edge}; order: {', '.join(order)}",
                    expected="edges to later nodes; what comes back in the next step is feedback",
                    remedy=f"move {source}: [{target}] from data_flow to feedback_flow",
                )
            if kind == "feedback_flow" and runs < reads:
                raise ExportError(
                    "a feedback edge leads to a node that runs later in the same step",
                    found=f"{edge}; order: {', '.join(order)}",
                    expected="feedback to the same node or an earlier one",
                    remedy=f"move {source}: [{target}] from feedback_flow to data_flow",
                )
            source_type, target_type = _type(sources[source]), _type(targets[target])
            fits = len(source_type) == len(target_type) and all(
                a == b or isinstance(a, str) or isinstance(b, str)
                for a, b in zip(source_type[1:], target_type[1:], strict=True)
            )
            if source_type[0] != target_type[0] or not fits:
                raise ExportError(
                    f"{source} does not fit {target}",
                    found=f"{source_type[0]} {list(source_type[1:])}",
                    expected=f"{target_type[0]} {list(target_type[1:])}",
                )


def _type(value: ir.Value) -> tuple[object, ...]:
    """Type and extents of a port; an open extent is a text."""
    shape = value.shape or ()
    return (str(value.dtype), *(d if isinstance(d, int) else str(d) for d in shape))


def _names(ports: Sequence[str], nexts: Mapping[str, str]) -> dict[str, str]:
    """A port's name in the bundle: its tensor's, or NODE_TENSOR where others share it."""
    several = Counter(nexts.values())
    origin = {port: port for port in ports}
    # A next state has its source's name, unless that is an output too or goes to two states.
    for port, source in nexts.items():
        origin[port] = port if several[source] > 1 or source in origin else source
    tensors = Counter(port.partition("/")[2] for port in origin.values())
    return {
        port: tensor if tensors[tensor] == 1 else f"{node}_{tensor}"
        for port, (node, _, tensor) in ((p, o.partition("/")) for p, o in origin.items())
    }


def _plain(
    nodes: Mapping[str, onnx.ModelProto],
    data: Edges,
    nexts: Mapping[str, str],
    names: Mapping[str, str],
) -> Plain:
    """One step as LEAPP's runtime takes it: each node's untouched file, in their order."""
    sessions = {name: unoptimised(model.SerializeToString()) for name, model in nodes.items()}
    carried = {target: source for source, target in data}

    def step(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for node, session in sessions.items():
            reads = {i.name: f"{node}/{i.name}" for i in session.get_inputs()}
            feeds = {
                name: values[carried[port]] if port in carried else feed[names[port]]
                for name, port in reads.items()
            }
            outputs = [output.name for output in session.get_outputs()]
            arrays = run_within_limits(session, outputs, feeds)
            values |= {f"{node}/{n}": array for n, array in zip(outputs, arrays, strict=True)}
        answers = {port: nexts.get(port, port) for port in names}
        return {names[port]: values[s] for port, s in answers.items() if s in values}

    return step
