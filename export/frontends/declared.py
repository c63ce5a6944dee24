"""What the user declares of an ONNX file: sizes of axes, inputs that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stategate.contract import ConstantSpec, StateSpec, TensorSpec
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import GraphError
from stategate.contract.reading import FILE_BYTES
from stategate.export.passes.graph import every_node

NO_AXES: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says about a file."""

    dims: Mapping[str, int]  # sizes of named dynamic axes
    shapes: Mapping[str, tuple[int, ...]]  # whole shapes of inputs, for axes without a name
    # Inputs that shall be fixed for ever: one number as text for all elements, or an array.
    constants: Mapping[str, np.ndarray | str]
    states: Mapping[str, str]  # output by state input; empty to look for pairs
    # What states start with: an array, or one number as text for all elements; else zeros.
    initial: Mapping[str, np.ndarray | str] = field(default_factory=dict)
    # Samples of the window before that an input begins with; see `export.frontends.context`.
    contexts: Mapping[str, int] = field(default_factory=dict)
    lift: bool = False  # whether hidden memory becomes states; see `export.frontends.lifting`
    time_axes: Mapping[str, int] = field(default_factory=dict)  # which axis of an input is time


def pinned_inputs(
    model: onnx.ModelProto, request: Request, axes: Mapping[str, int] = NO_AXES, hop: int = 1
) -> dict[str, TensorSpec]:
    """Every input with the shape that the user pins it to; the graph itself stays untouched."""
    values = free_inputs(model)
    dims = [dim for value in values.values() for dim in value.type.tensor_type.shape.dim]
    names = dict.fromkeys(sorted(dim.dim_param for dim in dims if dim.dim_param))
    for option, options, candidates, error, hint in (
        ("--shape", request.shapes, values, "the graph has no such input", ""),
        ("--const", request.constants, values, "the graph has no such input", ""),
        (
            "--dim",
            request.dims,
            names,
            "no input has a dynamic axis of that name",
            "none of its axes has a name; use --shape",
        ),
    ):
        unknown = [f"{option} {name}" for name in sorted(set(options) - set(candidates))]
        if unknown:
            raise GraphError(
                error, found=", ".join(unknown), expected=", ".join(candidates) or hint
            )
    shapes = {n: _wish(value, request, axes.get(n), hop) for n, value in values.items()}
    _refuse_open([values[name] for name, shape in shapes.items() if 0 in shape], shapes)
    specs = {n: TensorSpec(n, shape, _dtype(values[n])) for n, shape in shapes.items()}
    size = sum(spec.nbytes for spec in specs.values())
    if size > FILE_BYTES:  # a graph of a few bytes may ask for any number of them
        raise GraphError(
            "the inputs of one step are too large",
            found=f"{size:,} bytes",
            expected=f"at most {FILE_BYTES:,}",
            remedy="give the graph smaller inputs, one frame in each step",
        )
    return specs


def free_inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What a caller hands over, by name: an initialiser that is an input as well is a default."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {v.name: v for v in model.graph.input if v.name not in constants}


def _wish(
    value: onnx.ValueInfoProto, request: Request, time: int | None, hop: int
) -> tuple[int, ...]:
    """The declared shape of an input, 0 where an axis is open."""
    dims = value.type.tensor_type.shape.dim
    shape = tuple(
        hop if i == time else d.dim_value or request.dims.get(d.dim_param, 0)
        for i, d in enumerate(dims)
    )
    array = request.constants.get(value.name)
    wish = array.shape if isinstance(array, np.ndarray) else request.shapes.get(value.name, shape)
    if len(wish) != len(shape) or any(a != s for a, s in zip(wish, shape, strict=True) if s):
        option = "--const" if isinstance(array, np.ndarray) else "--shape"
        raise GraphError(
            f"input {value.name!r} cannot take this shape",
            found=f"{option} {value.name}={','.join(map(str, wish))}",
            expected=_shown(value),
        )
    return wish


def _refuse_open(values: list[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Name every open axis at once, with options that pin each of them."""
    if not values:
        return
    options: dict[str, None] = {}
    for value in values:
        dims = value.type.tensor_type.shape.dim
        is_open = [not extent for extent in shapes[value.name]]
        open_names = [d.dim_param for d, o in zip(dims, is_open, strict=True) if o]
        if all(open_names):
            options |= dict.fromkeys(
                f"--dim '{n}=1'" if " " in n else f"--dim {n}=1" for n in open_names
            )
        else:
            whole = ",".join(str(extent or 1) for extent in shapes[value.name])
            options[f"--shape {value.name}={whole}"] = None
    raise GraphError(
        f"{'inputs have' if len(values) > 1 else f'input {values[0].name!r} has'} open axes",
        found=", ".join(map(_shown, values)),
        expected="a fixed size for each of them",
        remedy=f"{' '.join(options)}; 1 is right for a batch, and what one step has of time; "
        "--lift keeps what a file over a time axis remembers; --const NAME=VALUE fixes an input",
    )


def _shown(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"{value.name}[{', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)}]"


def _dtype(value: onnx.ValueInfoProto) -> str:
    return dtype_from_onnx(value.type.tensor_type.elem_type).name


def filled(spec: TensorSpec | StateSpec, text: str, option: str) -> ConstantSpec:
    """A tensor with one value everywhere.

    A constant stays an input: baked into the graph, it makes ONNX Runtime 1.32 inline the branches
    that it decides, and that crashes on silero-vad's graph.
    """
    try:
        if spec.dtype == "bool":
            value: bool | float = {"true": True, "1": True, "false": False, "0": False}[text]
        else:
            value = float(text) if spec.dtype.startswith("float") else int(text)
        return ConstantSpec(spec.name, spec.shape, spec.dtype, value)
    except (KeyError, ValueError) as problem:
        raise GraphError(
            f"input {spec.name!r} cannot have this value",
            found=f"{option} {spec.name}={text}",
            expected=f"one finite {spec.dtype}, or a .npy file",
        ) from problem


def fitting(spec: TensorSpec | StateSpec, value: np.ndarray, what: str) -> np.ndarray:
    """An array that has the shape and dtype of a tensor, and is finite."""
    fits = value.shape == spec.shape and value.dtype == spec.dtype
    if not fits or not np.isfinite(value).all():
        raise GraphError(
            what,
            found=f"{value.dtype} {list(value.shape)}{', not finite' if fits else ''}",
            expected=f"finite {spec.dtype} {list(spec.shape)}",
        )
    return value


def with_constants(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a file in which some inputs are constants: a speaker's voice, a command."""
    work = onnx.ModelProto()
    work.CopyFrom(model)
    rest = [value for value in work.graph.input if value.name not in arrays]
    del work.graph.input[:]
    work.graph.input.extend(rest)
    for name, array in arrays.items():
        work.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.checker.check_model(work)
    return work


def context_of(whole: TensorSpec, count: int) -> tuple[TensorSpec, StateSpec]:
    """The new samples that a caller hands over, and the state of those before."""
    if not whole.shape or not 0 < count < whole.shape[-1]:
        raise GraphError(
            f"input {whole.name!r} has no room for this context",
            found=f"--context {whole.name}={count} of {list(whole.shape)}",
            expected="fewer than the extent of its last axis, which is context and new samples",
        )
    *rest, length = whole.shape
    new = TensorSpec(whole.name, (*rest, length - count), whole.dtype)
    return new, StateSpec(f"{whole.name}.context", (*rest, count), whole.dtype)


def with_context(model: onnx.ModelProto, new: TensorSpec, state: StateSpec) -> onnx.ModelProto:
    """A copy of the graph behind a node that puts the context in front of an input.

    No pass of onnx-ir: everything else of a stranger's file stays as it is, byte for byte.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    joined = f"{new.name}.joined"
    for node in every_node(work.graph):
        for at, name in enumerate(node.input):
            node.input[at] = joined if name == new.name else name
    whole = next(value for value in work.graph.input if value.name == new.name)
    work.graph.input.append(_resized(whole, state.name, state.shape[-1]))
    work.graph.output.append(_resized(whole, state.next_name, state.shape[-1]))
    whole.CopyFrom(_resized(whole, new.name, new.shape[-1]))
    # The last samples, up to whatever the end is, become the context of the next step.
    bounds = {"start": -state.shape[-1], "end": np.iinfo(np.int64).max, "axis": len(new.shape) - 1}
    for what, bound in bounds.items():
        array = np.array([bound], np.int64)
        work.graph.initializer.append(numpy_helper.from_array(array, f"{joined}.{what}"))
    in_front = helper.make_node("Concat", [state.name, new.name], [joined], axis=-1)
    names = [joined, *(f"{joined}.{what}" for what in bounds)]
    nodes = [in_front, helper.make_node("Slice", names, [state.next_name]), *work.graph.node]
    del work.graph.node[:]
    work.graph.node.extend(nodes)
    onnx.checker.check_model(work)
    return work


def _resized(whole: onnx.ValueInfoProto, name: str, length: int) -> onnx.ValueInfoProto:
    """The same tensor with another name and last extent; what is open in the file stays open.

    A branch that is never taken may not have the shapes that are pinned, and is loaded all the
    same.
    """
    value = onnx.ValueInfoProto()
    value.CopyFrom(whole)
    value.name = name
    last = value.type.tensor_type.shape.dim[-1]
    is_open = not last.HasField("dim_value")
    last.Clear()
    if not is_open:
        last.dim_value = length
    return value
