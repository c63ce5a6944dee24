"""A LEAPP export: the YAML beside ONNX files says which output feeds which input.

LEAPP (package ``leapp``, NVIDIA) traces a policy into nodes and writes one model file for each, one
YAML with the edges between them, and one safetensors file with the initial values of what is fed
back. Several nodes become one graph. The package itself is not needed here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from stategate.contract import sha256
from stategate.contract.errors import ExportError
from stategate.contract.failures import failures
from stategate.contract.manifest import ModelRef
from stategate.contract.reading import read_bounded
from stategate.contract.staging import scratch_folder
from stategate.contract.state_file import decode_states
from stategate.export.candidate import ADOPTED
from stategate.export.frontends.adopt import Adopted, adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.leapp_pipeline import Edges, merge
from stategate.export.frontends.untrusted import GRAPH_BYTES, load_graph
from stategate.export.frontends.yaml_file import load_yaml

Names = list[list[str | None] | str | None]


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    kind: str | None = None
    element_names: Names | None = None


class _Parameters(msgspec.Struct, frozen=True):
    backend: str
    model_path: str | None = None
    sha256sum: str | None = None


class _Model(msgspec.Struct, frozen=True):
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    parameters: _Parameters


class _Configs(msgspec.Struct, frozen=True):
    frequency: float | None = None


class _Pipeline(msgspec.Struct, frozen=True):
    feedback_flow: dict[str, list[str]]
    data_flow: dict[str, list[str]] = {}
    outputs: dict[str, list[str]] = {}
    initial_values: str | None = None
    configs: _Configs = _Configs()


class _System(msgspec.Struct, frozen=True, rename={"leapp_version": "leapp version"}):
    leapp_version: str


class _Document(msgspec.Struct, frozen=True, rename={"system": "system information"}):
    models: dict[str, _Model]
    pipeline: _Pipeline
    system: _System


@dataclass(frozen=True, slots=True)
class LeappExport:
    """What a LEAPP export says."""

    nodes: dict[str, Path]  # ONNX files of the digests that the YAML names, in their order
    data: Edges  # within a step
    feedback: Edges  # to the next step
    document: _Document


def adopt_export(path: Path, request: Request) -> Adopted:
    """Adopt the ONNX files of a LEAPP export with the states that its feedback edges name."""
    if request.states:
        raise ExportError(
            "a LEAPP export names its states itself",
            found=", ".join(f"--state {name}={out}" for name, out in request.states.items()),
            expected="no --state beside a YAML",
            remedy="leave it out, or adopt the ONNX file instead of the YAML",
        )
    export = read_export(path)
    pipeline = export.document.pipeline
    if len(export.nodes) == 1:
        ((node, file),) = export.nodes.items()
        own = {source: _tensor_of(node, source) for edge in export.feedback for source in edge}
        own |= {port: port.partition("/")[2] for port in _tensors(export.document)}
        states = {own[target]: own[source] for source, target in export.feedback}
        return _with_facts(path, file, request, export, own, states)
    if request.lift:
        raise ExportError(
            "what hides in a pipeline of several nodes is not lifted",
            found=", ".join(export.nodes),
            expected="no --lift, or one node",
            remedy="adopt one node's ONNX file by itself",
        )
    outputs = {f"{node}/{name}" for node, names in pipeline.outputs.items() for name in names}
    files = {node: load_graph(file)[1] for node, file in export.nodes.items()}
    merged = merge(files, export.data, export.feedback, outputs)
    with scratch_folder() as folder:
        file = folder / f"{path.stem}.onnx"
        file.write_bytes(merged.model.SerializeToString(deterministic=True))
        adopted = _with_facts(path, file, request, export, merged.names, merged.states)
    return replace(adopted, plain=merged.step)


def _with_facts(
    path: Path,
    file: Path,
    request: Request,
    export: LeappExport,
    names: Mapping[str, str],
    states: dict[str, str],
) -> Adopted:
    """Adopt one graph with what the YAML says; names are those of its ports in that graph."""
    tensors = _tensors(export.document)
    inputs = {p for node, m in export.document.models.items() for p in _ports(node, m.inputs)}
    shapes = {names[port]: t.shape for port, t in tensors.items() if port in inputs & set(names)}
    adopted = adopt(
        file,
        replace(
            request,
            shapes={**shapes, **request.shapes},
            states=states,
            initial={**_initial(path, export, names), **request.initial},
        ),
    )
    before = adopted.candidate
    model = ModelRef(path.stem, ADOPTED, f"{path.name}:{file.name}", before.model.sha256)
    facts = _facts(export.document, names)
    candidate = replace(before, model=model, metadata={**before.metadata, **facts})
    return replace(adopted, candidate=candidate)


def read_export(path: Path) -> LeappExport:
    """Read a LEAPP export of ONNX nodes; its errors are those of `adopt_export`."""
    document = _document(path)
    pipeline = document.pipeline
    if not document.models:
        raise ExportError("the LEAPP graph has no node", found=path, expected="one or more")
    nodes = {node: _onnx_file(path, node, m.parameters) for node, m in document.models.items()}
    data, feedback = _edges(pipeline.data_flow), _edges(pipeline.feedback_flow)
    if data and len(nodes) == 1:
        raise ExportError(
            "data flows in a circle within the only node",
            found="; ".join(f"{source} -> {target}" for source, target in data),
            expected="edges of one node are feedback",
            remedy="move it from data_flow to feedback_flow",
        )
    if not feedback:
        raise ExportError(
            "the LEAPP graph feeds nothing back, so it has no state",
            found="no feedback edge",
            expected="at least one",
            remedy="declare the memory with annotate.state_tensors and annotate.update_state; a "
            "model without state needs no stategate",
        )
    into = Counter(target for _, target in (*data, *feedback))
    if twice := [target for target, count in into.items() if count > 1]:
        raise ExportError("two edges lead to one input", found=", ".join(twice))
    return LeappExport(nodes, data, feedback, document)


def _onnx_file(path: Path, node: str, parameters: _Parameters) -> Path:
    """The file of one node, of the digest that the YAML names."""
    if parameters.backend != "onnx" or parameters.model_path is None:
        raise ExportError(
            f"node {node!r} is no ONNX file",
            found=f"backend {parameters.backend}, {parameters.model_path}",
            expected="backend onnx",
            remedy='annotate.output_tensors(..., export_with="onnx")',
        )
    onnx_file, raw = _read_neighbour(path, parameters.model_path)
    if sha256(raw) != parameters.sha256sum:
        raise ExportError(
            f"{onnx_file.name} is not the file that the YAML describes",
            found=f"sha256 {sha256(raw)}",
            expected=f"sha256 {parameters.sha256sum}",
            remedy="export with LEAPP again, or copy the whole folder again",
        )
    return onnx_file


def _edges(flow: Mapping[str, list[str]]) -> Edges:
    return [(source, target) for source, targets in flow.items() for target in targets]


def _ports(node: str, tensors: Iterable[_Tensor]) -> dict[str, _Tensor]:
    return {f"{node}/{tensor.name}": tensor for tensor in tensors}


def _tensors(document: _Document) -> dict[str, _Tensor]:
    """All inputs and outputs, by port."""
    ports: dict[str, _Tensor] = {}
    for node, model in document.models.items():
        ports |= _ports(node, [*model.inputs, *model.outputs])
    return ports


def _document(path: Path) -> _Document:
    try:
        return msgspec.convert(load_yaml(path), _Document)
    except failures() as problem:  # PyYAML lets KeyError, AttributeError and more through
        raise ExportError(
            f"{path} is not the YAML of a LEAPP export",
            found=" ".join(str(problem).split()) or type(problem).__name__,
            expected="models, pipeline and system information, as leapp.compile_graph() writes",
        ) from problem


def _read_neighbour(path: Path, name: str) -> tuple[Path, bytes]:
    """A file of the export and its bytes; what lies outside its folder is never opened."""
    try:
        full = (path.parent / name).resolve()
        if not full.is_relative_to(path.parent.resolve()):
            raise ExportError(
                "the YAML names a file outside its folder",
                found=name,
                expected=f"a file in {path.parent}",
                remedy="copy it there, and correct the YAML",
            )
        return full, read_bounded(full, GRAPH_BYTES)
    except (OSError, ValueError) as problem:
        raise ExportError(
            "a file of the LEAPP export cannot be read",
            found=f"{name}: {problem}",
            expected=f"a file in {path.parent}",
            remedy="copy the whole folder of the export",
        ) from problem


def _tensor_of(node: str, port: str) -> str:
    owner, slash, tensor = port.partition("/")
    if owner != node or not slash or not tensor:
        raise ExportError(
            "an edge of the LEAPP graph leads nowhere", found=port, expected=f"{node}/TENSOR"
        )
    return tensor


def _initial(path: Path, export: LeappExport, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    pipeline = export.document.pipeline
    if pipeline.initial_values is None:
        return {}
    file, raw = _read_neighbour(path, pipeline.initial_values)
    try:
        arrays, _ = decode_states(raw)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("NaN or Inf")
    except failures(ValueError, msgspec.MsgspecError) as problem:
        raise ExportError(
            f"{file.name} holds no initial values", found=problem, expected="a safetensors file"
        ) from problem
    if unknown := sorted(set(arrays) - set(names)):
        raise ExportError(
            f"{file.name} has a value for an input that is no state",
            found=", ".join(unknown),
            expected=", ".join(target for _, target in export.feedback),
        )
    return {names[port]: array for port, array in arrays.items()}


def _facts(document: _Document, names: Mapping[str, str]) -> dict[str, str]:
    facts = {
        "leapp.node": ", ".join(document.models),
        "leapp.version": document.system.leapp_version,
    }
    if document.pipeline.configs.frequency is not None:
        facts["leapp.frequency_hz"] = f"{document.pipeline.configs.frequency:g}"
    for node, model in document.models.items():
        for side, tensors in (("input", model.inputs), ("output", model.outputs)):
            for port, tensor in _ports(node, tensors).items():
                if port not in names:
                    continue  # it travels between two nodes
                fact = f"leapp.{side}.{names[port]}"
                if tensor.kind is not None:
                    facts[f"{fact}.kind"] = tensor.kind
                if tensor.element_names is not None:
                    text = json.dumps(tensor.element_names, ensure_ascii=False)
                    facts[f"{fact}.element_names"] = text
    return facts
