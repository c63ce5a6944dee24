"""C expressions of the operators that compute each element by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np

from stategate.export.c.interface import c_type

Expression = Callable[[Sequence[str], Mapping[str, Any]], str]

_INFIX = {
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/",
    "And": "&&", "Or": "||", "Xor": "!=",
    "Equal": "==", "Less": "<", "LessOrEqual": "<=", "Greater": ">", "GreaterOrEqual": ">=",
}  # fmt: skip
_COMPARE = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
_LOGIC = {"And", "Or", "Xor", "Not"}
_NUMBERS = {"float32", "float64"}
_INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
# float32 only: functions of stategate_math.h. NaN goes through each of them.
_FUNCTIONS = {
    "Exp": "stategate_expf({0})",
    "Log": "stategate_logf({0})",
    "Tanh": "stategate_tanhf({0})",
    "Sigmoid": "stategate_sigmoidf({0})",
    "Softplus": "stategate_softplusf({0})",
    "Sin": "stategate_sinf({0})",
    "Cos": "stategate_cosf({0})",
    "Erf": "stategate_erff({0})",
    "Softsign": "({0} / (1.0f + fabsf({0})))",
    "Mish": "({0} * stategate_tanhf(stategate_softplusf({0})))",
    "Pow": "stategate_powf({0}, {1})",
    "PRelu": "stategate_chosen({0} < 0.0f, {1} * {0}, {0})",
    "HardSwish": "({0} * stategate_between(({0} * 0.166666667f + 0.5f), 0.0f, 1.0f))",
}
# The same with numbers that are attributes, and what these are where a node does not say.
_SHAPED = {
    "LeakyRelu": ("stategate_chosen({0} < 0.0f, {alpha} * {0}, {0})", {"alpha": 0.01}),
    "Elu": (
        "stategate_chosen({0} < 0.0f, {alpha} * (stategate_expf({0}) - 1.0f), {0})",
        {"alpha": 1.0},
    ),
    "HardSigmoid": (
        "stategate_between(({0} * {alpha} + {beta}), 0.0f, 1.0f)",
        {"alpha": 0.2, "beta": 0.5},
    ),
}
_GELU = {  # by its approximation, with a number
    "none": ("(0.5f * {0} * (1.0f + stategate_erff({0} * {c})))", 0.5**0.5),
    "tanh": (
        "(0.5f * {0} * (1.0f + stategate_tanhf({c} * ({0} + 0.044715f * {0} * {0} * {0}))))",
        (2 / np.pi) ** 0.5,
    ),
}
_EXACT = {  # of float32 and float64: (float32, float64)
    "Sqrt": ("sqrtf({0})", "sqrt({0})"),
    "Abs": ("fabsf({0})", "fabs({0})"),
    "Floor": ("floorf({0})", "floor({0})"),
    "Ceil": ("ceilf({0})", "ceil({0})"),
    "Round": ("rintf({0})", "rint({0})"),
    "Reciprocal": ("(1.0f / {0})", "(1.0 / {0})"),
}
# Integers go around at the ends of their type, which C says of unsigned ones alone: `t` is the
# type, `u` an unsigned one of as many bits or more, `signed` what gives a result its sign back: a
# function, because MISRA C's rule 10.8 casts no sum to another kind of number.
_AROUND = {
    "Add": "({t}){signed}(({u}){0} + ({u}){1})",
    "Sub": "({t}){signed}(({u}){0} - ({u}){1})",
    "Mul": "({t}){signed}(({u}){0} * ({u}){1})",
    "Neg": "({t}){signed}(0u - ({u}){0})",
    "Div": "({t})stategate_quotient({0}, {1})",
    "Mod": "({t})stategate_rest({0}, {1}, {fmod})",
    "BitShift": "({1} < {bits} ? ({t}){signed}(({u}){0} {shift} {1}) : 0)",
}
_SMALL = 4  # the largest exponent of a power that is written as products


def literal(value: Any, dtype: str) -> str:
    """A constant in C."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype in _NUMBERS:
        number = float(value)
        if not np.isfinite(number):
            return "NAN" if np.isnan(number) else ("INFINITY" if number > 0 else "(-INFINITY)")
        text = number.hex() + ("f" if dtype == "float32" else "")
        return f"({text})" if number < 0 else text
    whole = int(value)
    if whole == np.iinfo(np.int64).min:
        return "INT64_MIN"
    return f"({whole})" if whole < 0 else str(whole)


def expression(
    operator: str,
    dtypes: Sequence[str],
    result: str,
    attributes: Mapping[str, Any],
    constants: Sequence[np.ndarray | None],
) -> Callable[[Sequence[str]], str] | None:
    """How an operator computes one element; None where it is not written here.

    It is an expression of those of the operands, each of which is a name or a literal.
    """
    kind = dtypes[0] if operator != "Where" else result
    real = kind in _NUMBERS
    if operator in _LOGIC:
        if operator == "Not":
            return lambda x: f"(!{x[0]})"
        return lambda x: f"({x[0]} {_INFIX[operator]} {x[1]})"
    if operator in _COMPARE and (real or kind in _INTEGERS or kind == "bool"):
        return lambda x: f"({x[0]} {_INFIX[operator]} {x[1]})"
    if operator == "Where":
        return lambda x: chosen(kind, x[0], x[1], x[2])
    if operator == "Cast":
        return _cast(kind, result)
    if operator == "Identity":
        return lambda x: x[0]
    if not real and kind not in _INTEGERS:
        return None
    if not real and operator in _AROUND:
        return _integer(operator, kind, attributes, constants)
    suffix = "f" if kind == "float32" else ""
    zero = f"0.0{suffix}" if real else "0"
    if operator in _INFIX:
        return lambda x: f"({x[0]} {_INFIX[operator]} {x[1]})"
    if operator == "Neg":
        return lambda x: f"(-{x[0]})"
    if operator in ("Max", "Min"):
        return partial(reduce, partial(extreme, kind, operator == "Max"))
    if operator == "Clip":
        # Before opset 11 its bounds are attributes.
        return None if attributes else partial(_clip, kind)
    if operator == "Relu":
        return lambda x: chosen(kind, f"{x[0]} < {zero}", zero, x[0])
    if not real:
        return None
    if operator == "Sign":
        return lambda x: chosen(
            kind,
            f"{x[0]} > {zero}",
            f"1.0{suffix}",
            chosen(kind, f"{x[0]} < {zero}", f"-1.0{suffix}", x[0]),
        )
    if operator == "IsNaN":
        return lambda x: f"({x[0]} != {x[0]})"
    if operator in _EXACT:
        form = _EXACT[operator][kind == "float64"]
        return lambda x: form.format(*x)
    if operator == "Pow":
        small = _small_power(constants)
        if small is not None:
            return small
    if kind != "float32" or any(d != "float32" for d in dtypes):
        return None  # double functions are those of the C library, whose last bits differ
    if operator in _FUNCTIONS:
        form = _FUNCTIONS[operator]
        return lambda x: form.format(*x)
    return _activation(operator, attributes)


def _cast(kind: str, result: str) -> Callable[[Sequence[str]], str] | None:
    if "float16" in (kind, result) or {kind, result} - _NUMBERS - _INTEGERS - {"bool"}:
        return None
    if result == "bool":
        return lambda x: f"({x[0]} != 0)"
    if kind in _NUMBERS and result in _INTEGERS:
        if result == "uint64":
            return None  # whose upper half no other integer has
        by = "int64" if result in ("int64", "uint32") else "int32"
        return lambda x: f"(({c_type(result)})stategate_{by}({x[0]}))"
    return lambda x: f"(({c_type(result)})({x[0]}))"


def _integer(
    operator: str,
    kind: str,
    attributes: Mapping[str, Any],
    constants: Sequence[np.ndarray | None],
) -> Callable[[Sequence[str]], str] | None:
    if operator == "Div" and constants[1] is not None and not np.isin(constants[1], (0, -1)).any():
        return lambda x: f"(({c_type(kind)})({x[0]} / {x[1]}))"
    if kind == "uint64" and operator in ("Div", "Mod"):
        return None  # they are written with signed integers
    bits = int(kind.removeprefix("u").removeprefix("int"))
    how = {
        "t": c_type(kind),
        "u": "uint64_t" if bits == 64 else "uint32_t",
        "signed": "stategate_signed64" if bits == 64 else "stategate_signed32",
        "bits": bits,
        "fmod": "true" if attributes.get("fmod") else "false",
        "shift": "<<" if attributes.get("direction") == "LEFT" else ">>",
    }
    form = _AROUND[operator]
    return lambda x: f"({form.format(*x, **how)})"


def chosen(kind: str, condition: str, first: str, second: str) -> str:
    """One of two values. Of float32 by a function, whose branches the self-test reaches."""
    if kind == "float32":
        return f"stategate_chosen({condition}, {first}, {second})"
    return f"({condition} ? {first} : {second})"


def extreme(kind: str, largest: bool, first: str, second: str) -> str:
    """The larger or the smaller of two values; NaN stays NaN."""
    if kind == "float32":
        return f"stategate_{'larger' if largest else 'smaller'}({first}, {second})"
    nan = f" || {first} != {first}" if kind in _NUMBERS else ""
    return f"(({first} {'>' if largest else '<'} {second}{nan}) ? {first} : {second})"


def _clip(kind: str, operands: Sequence[str]) -> str:
    text, *bounds = operands
    for sign, bound in zip("<>", bounds, strict=False):
        if bound:
            text = chosen(kind, f"{text} {sign} {bound}", bound, text)
    return text


def _small_power(constants: Sequence[np.ndarray | None]) -> Callable[[Sequence[str]], str] | None:
    exponent = constants[1] if len(constants) > 1 else None
    if exponent is None or exponent.size != 1:
        return None
    value = float(exponent.reshape(-1)[0])
    if value in range(2, _SMALL + 1):
        return lambda x: "(" + " * ".join([x[0]] * int(value)) + ")"
    return (lambda x: x[0]) if value == 1 else None


def _activation(
    operator: str, attributes: Mapping[str, Any]
) -> Callable[[Sequence[str]], str] | None:
    if operator == "Gelu":
        form, number = _GELU["tanh" if attributes.get("approximate") == "tanh" else "none"]
        numbers: dict[str, Any] = {"c": number}
    elif operator in _SHAPED:
        form, defaults = _SHAPED[operator]
        numbers = {name: attributes.get(name, number) for name, number in defaults.items()}
    else:
        return None
    texts = {name: literal(np.float32(number), "float32") for name, number in numbers.items()}
    return lambda x: form.format(*x, **texts)
