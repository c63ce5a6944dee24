"""Softmax and norms in terms of reductions and loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from stategate.export.c.program import Program


def _row_wise(program: Program, name: str, axis: int) -> tuple[list[int], tuple[int, ...]]:
    shape = program.shape(name)
    axes = list(range(axis % len(shape), len(shape)))
    return axes, tuple(1 if a in axes else n for a, n in enumerate(shape))


def softmax(program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
    """Add a Softmax; False where it is not written here."""
    name, output = node.input[0], node.output[0]
    shape = program.shape(name)
    axis = int(attributes.get("axis", -1)) % len(shape)
    if program.dtype(name) != "float32":
        return False
    row = tuple(1 if a == axis else n for a, n in enumerate(shape))
    program.view(name)  # it is taken twice
    most, sums, parts, powers = (
        program.fresh(f"{output}.{what}", "float32", form).buffer
        for what, form in (("max", row), ("sum", row), ("minus", shape), ("exp", shape))
    )
    program.uses[powers] = 2
    program.reduce("ReduceMax", name, most, [axis])
    program.compute("Sub", [name, most], parts)
    program.compute("Exp", [parts], powers)
    program.view(powers)
    program.reduce("ReduceSum", powers, sums, [axis])
    return program.compute("Div", [powers, sums], output)


def layer_normalization(
    program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> bool:
    """Add a norm over the last axes; False where it is not written here."""
    name, scale, *bias = [n for n in node.input if n]
    output = node.output[0]
    if len([o for o in node.output if o]) > 1 or program.dtype(name) != "float32":
        return False
    shape = program.shape(name)
    axes, row = _row_wise(program, name, int(attributes.get("axis", -1)))
    is_rms = node.op_type == "RMSNormalization"
    parts = {
        what: program.fresh(f"{output}.{what}", "float32", form).buffer
        for what, form in (
            ("mean", row), ("centred", shape), ("square", shape), ("variance", row),
            ("plus", row), ("root", row), ("unit", shape), ("scaled", shape),
        )
    }  # fmt: skip
    epsilon = program.fresh(f"{output}.epsilon", "float32", ()).buffer
    program.constants = {
        **program.constants,
        epsilon: np.array(attributes.get("epsilon", 1e-5), np.float32),
    }
    centred = name
    program.view(name)
    if not is_rms:
        program.reduce("ReduceMean", name, parts["mean"], axes)
        program.uses[parts["centred"]] = 2
        program.compute("Sub", [name, parts["mean"]], parts["centred"])
        centred = parts["centred"]
        program.view(centred)
    program.compute("Mul", [centred, centred], parts["square"])
    program.reduce("ReduceMean", parts["square"], parts["variance"], axes)
    program.compute("Add", [parts["variance"], epsilon], parts["plus"])
    program.compute("Sqrt", [parts["plus"]], parts["root"])
    program.compute("Div", [centred, parts["root"]], parts["unit"])
    scaled = parts["scaled"] if bias else output
    program.compute("Mul", [parts["unit"], scale], scaled)
    return not bias or program.compute("Add", [scaled, bias[0]], output)
