"""A LEAPP export: the YAML beside an ONNX file says which output feeds which input again.

LEAPP (package ``leapp``, NVIDIA) traces a policy into nodes and writes one model file for each, one
YAML with the edges between them, and one safetensors file with the initial values of what is fed
back. The package itself is not needed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from stategate.contract import ModelRef, sha256
from stategate.contract.errors import ExportError
from stategate.contract.failures import failures
from stategate.contract.reading import read_bounded
from stategate.contract.state_file import decode_states
from stategate.export.candidate import ADOPTED
from stategate.export.frontends.adopt import Adopted, adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.untrusted import GRAPH_BYTES
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
    """What a LEAPP export says about its one node."""

    onnx_file: Path  # of the digest that the YAML names
    states: dict[str, str]  # output by input, from the feedback edges
    shapes: dict[str, tuple[int, ...]]  # of all inputs
    initial: dict[str, np.ndarray]  # first values of states, by input
    facts: dict[str, str]  # node, version, frequency and meanings of tensors, for the manifest


def adopt_export(path: Path, request: Request) -> Adopted:
    """Adopt the ONNX file of a LEAPP export with the states that its feedback edges name.

    Args:
        path: The YAML.
        request: What the user adds: axes, constants, other initial values. No states.

    Raises:
        ExportError: The YAML is malformed, has several nodes or no feedback, or a file beside it
            is missing, altered or outside its folder.
        GraphError: See `adopt`.
        StatePairingError: A feedback edge names what the graph lacks, or does not fit.
    """
    if request.states:
        raise ExportError(
            "a LEAPP export names its states itself",
            found=", ".join(f"--state {name}={out}" for name, out in request.states.items()),
            expected="no --state beside a YAML",
            remedy="leave it out, or adopt the ONNX file instead of the YAML",
        )
    export = read_export(path)
    adopted = adopt(
        export.onnx_file,
        replace(
            request,
            shapes={**export.shapes, **request.shapes},
            states=export.states,
            initial={**export.initial, **request.initial},
        ),
    )
    before = adopted.candidate
    source = f"{path.name}:{export.onnx_file.name}"
    model = ModelRef(path.stem, ADOPTED, source, before.model.sha256)
    candidate = replace(before, model=model, metadata={**before.metadata, **export.facts})
    return replace(adopted, candidate=candidate)


def read_export(path: Path) -> LeappExport:
    """Read a LEAPP export of one ONNX node; its errors are those of `adopt_export`."""
    document = _document(path)
    pipeline = document.pipeline
    if len(document.models) != 1 or pipeline.data_flow:
        edges = [f"{source} -> {', '.join(to)}" for source, to in pipeline.data_flow.items()]
        raise ExportError(
            "the LEAPP graph is a pipeline of several nodes",
            found="; ".join([", ".join(document.models) or "no node", *edges]),
            expected="one node, whose only edges are feedback",
            remedy="trace the whole step between one annotate.input_tensors and one "
            "annotate.output_tensors of the same node, or adopt one node's ONNX file by itself",
        )
    ((node, model),) = document.models.items()
    if model.parameters.backend != "onnx" or model.parameters.model_path is None:
        raise ExportError(
            f"node {node!r} is no ONNX file",
            found=f"backend {model.parameters.backend}, {model.parameters.model_path}",
            expected="backend onnx",
            remedy='annotate.output_tensors(..., export_with="onnx")',
        )
    onnx_file, raw = _read_neighbour(path, model.parameters.model_path)
    if sha256(raw) != model.parameters.sha256sum:
        raise ExportError(
            f"{onnx_file.name} is not the file that the YAML describes",
            found=f"sha256 {sha256(raw)}",
            expected=f"sha256 {model.parameters.sha256sum}",
            remedy="export with LEAPP again, or copy the whole folder again",
        )
    return LeappExport(
        onnx_file=onnx_file,
        states=_states(node, pipeline),
        shapes={tensor.name: tensor.shape for tensor in model.inputs},
        initial=_initial(path, node, pipeline),
        facts=_facts(node, document),
    )


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


def _states(node: str, pipeline: _Pipeline) -> dict[str, str]:
    states: dict[str, str] = {}
    for source, targets in pipeline.feedback_flow.items():
        for target in targets:
            name = _tensor_of(node, target)
            if name in states:
                raise ExportError("two feedback edges lead to one input", found=target)
            states[name] = _tensor_of(node, source)
    if not states:
        raise ExportError(
            "the LEAPP graph feeds nothing back, so it has no state",
            found="no feedback edge",
            expected="at least one",
            remedy="declare the memory with annotate.state_tensors and annotate.update_state; a "
            "model without state needs no stategate",
        )
    return states


def _tensor_of(node: str, port: str) -> str:
    owner, slash, tensor = port.partition("/")
    if owner != node or not slash or not tensor:
        raise ExportError(
            "an edge of the LEAPP graph leads nowhere", found=port, expected=f"{node}/TENSOR"
        )
    return tensor


def _initial(path: Path, node: str, pipeline: _Pipeline) -> dict[str, np.ndarray]:
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
    return {_tensor_of(node, port): array for port, array in arrays.items()}


def _facts(node: str, document: _Document) -> dict[str, str]:
    facts = {"leapp.node": node, "leapp.version": document.system.leapp_version}
    if document.pipeline.configs.frequency is not None:
        facts["leapp.frequency_hz"] = f"{document.pipeline.configs.frequency:g}"
    model = document.models[node]
    for side, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            if tensor.kind is not None:
                facts[f"leapp.{side}.{tensor.name}.kind"] = tensor.kind
            if tensor.element_names is not None:
                names = json.dumps(tensor.element_names, ensure_ascii=False)
                facts[f"leapp.{side}.{tensor.name}.element_names"] = names
    return facts
