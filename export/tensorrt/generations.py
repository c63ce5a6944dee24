"""Generations of TensorRT: releases that take the same graphs, read from ``rules.toml``."""

from __future__ import annotations

import msgspec

from stategate.contract.errors import TargetError
from stategate.targets.toml_tables import read_toml


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Releases of TensorRT that take the same graphs."""

    name: str  # such as ``8.5``
    opset: int  # newest opset of the default domain that the parser is given
    # whether the graph's own types are obeyed; without that the builder chooses, within its flags
    strongly_typed: bool
    # standard operators of that opset that its parser does not have; they are written in simpler
    # ones
    lacks: frozenset[str] = frozenset()
    int64: bool = True  # whether a graph may take or give int64


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operators that no generation takes."""

    operators: tuple[str, ...]  # their names; a star at the end stands for any ending
    rule: str  # what is required instead
    remedy: str  # what to do
    found: str | None = None  # what is there; None for the operator itself

    def covers(self, operator: str) -> bool:
        """Whether an operator is one of them."""
        return any(
            operator.startswith(name[:-1]) if name.endswith("*") else operator == name
            for name in self.operators
        )


class LaterValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First opset of some values of an attribute."""

    operator: str
    attribute: str
    opset: dict[str, int]


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    generation: tuple[Generation, ...]
    refusal: tuple[Refusal, ...]
    later_value: tuple[LaterValue, ...]


RULES = read_toml("stategate.export", "tensorrt/rules.toml", "the table of TensorRT rules", Rules)
GENERATIONS = {generation.name: generation for generation in RULES.generation}


def generation_of(version: str, library: str = "tensorrt") -> Generation:
    """The generation of a version such as ``10.3.0``."""
    major, _, rest = version.partition(".")
    if library == "tensorrt_rtx" and major == "1":
        return GENERATIONS["11"]  # TensorRT-RTX 1.x has the parser and builder of TensorRT 11
    name = f"8.{rest.partition('.')[0]}" if major == "8" else major
    if name not in GENERATIONS:
        raise TargetError(
            "this version of TensorRT is not supported",
            found=f"{library} {version}",
            expected=f"{', '.join(GENERATIONS)} or TensorRT-RTX 1.x",
            remedy="use JetPack 5.1 or newer, or step the bundle with onnxruntime or native",
        )
    return GENERATIONS[name]
