"""Softmax and norms in terms of reductions and loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from stategate.export.c.program import Program


def softmax(program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
    """Add a Softmax; False where it is not written here."""
    name, output = node.input[0], node.output[0]
    axis = int(attributes.get("axis", -1)) % len(program.shape(name))
    if program.dtype(name) != "float32":
        return False
    program.view(name)  # it is taken twice
    most = program.reduced("ReduceMax", name, [axis])
    powers = program.computed("Exp", [program.computed("Sub", [name, most])], uses=2)
    program.view(powers)
    return program.compute("Div", [powers, program.reduced("ReduceSum", powers, [axis])], output)


def layer_normalization(
    program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> bool:
    """Add a norm over the last axes; False where it is not written here."""
    name, scale, *bias = [n for n in node.input if n]
    output = node.output[0]
    if len([o for o in node.output if o]) > 1 or program.dtype(name) != "float32":
        return False
    rank = len(program.shape(name))
    axes = list(range(int(attributes.get("axis", -1)) % rank, rank))
    epsilon = program.fresh(f"{output}.epsilon", "float32", ()).buffer
    program.constants = {
        **program.constants,
        epsilon: np.array(attributes.get("epsilon", 1e-5), np.float32),
    }
    program.view(name)
    centred = name
    if node.op_type != "RMSNormalization":
        mean = program.reduced("ReduceMean", name, axes)
        centred = program.computed("Sub", [name, mean], uses=2)
        program.view(centred)
    square = program.computed("Mul", [centred, centred])
    variance = program.reduced("ReduceMean", square, axes)
    root = program.computed("Sqrt", [program.computed("Add", [variance, epsilon])])
    unit = program.computed("Div", [centred, root])
    if not bias:
        return program.compute("Mul", [unit, scale], output)
    return program.compute("Add", [program.computed("Mul", [unit, scale]), bias[0]], output)
