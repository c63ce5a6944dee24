"""Loops over large tensors of a generated function joined where one only feeds another.

The generator writes a loop for every node. Where a node takes each element of a temporary for the
element of the same place of its own result, and nobody else takes that temporary, both loops are
one, and the temporary is a number: a write of a state reads it once then, and not four times.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

# Elements from which on a pass over memory is worth avoiding.
_LARGE = 1024
_LOOP = r"    +for \(idx_t i\d+ = 0; i\d+ < \d+; \+\+i\d+\) \{\n"
_FUNCTION = re.compile(
    rf"^EMX_NODE_FN void (?P<name>\w+)\((?P<parameters>.*)\) \{{\n(?P<loops>(?:{_LOOP})+)"
    r" +(?P<output>\w+)(?P<place>(?:\[i\d+\])+) = (?P<value>.*);\n(?P<ends>(?: +\}\n)+)\}\n",
    re.MULTILINE,
)
_PARAMETER = re.compile(r"(?:const )?(?P<kind>\w+) (?P<name>\w+)(?P<extents>(?:\[\d+\])+)")
_CALL = re.compile(r"^    (?P<name>\w+)\((?P<arguments>[^;{}]*)\);\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Nest:
    """One nest of loops: what it reads by the names of the arguments, and its result."""

    reads: dict[str, str]  # declaration of each argument that it reads
    before: tuple[str, ...]  # statements before the one that stores
    value: str  # what is stored
    kind: str  # type of the result
    extents: str  # shape of the result, in brackets
    output: str  # the argument that it fills

    @property
    def shape(self) -> list[int]:
        return [int(extent) for extent in re.findall(r"\d+", self.extents)]

    @property
    def own(self) -> str:
        """How a loop of this shape reads the element of its own place."""
        return "".join("[0]" if n == 1 else f"[i{i}]" for i, n in enumerate(self.shape))

    def fed_by(self, other: _Nest) -> _Nest | None:
        """Both as one; None where this reads other elements than that of its own place."""
        read = f"from_{other.output}"
        value = self.value.replace(f"{read}{other.own}", f"one_{other.output}")
        before = [s.replace(f"{read}{other.own}", f"one_{other.output}") for s in self.before]
        if other.extents != self.extents or any(f"{read}[" in s for s in (value, *before)):
            return None
        first = f"const {other.kind} one_{other.output} = {other.value};"
        reads = {name: d for name, d in self.reads.items() if name != other.output}
        statements = (*other.before, first, *before)
        return _Nest(other.reads | reads, statements, value, self.kind, self.extents, self.output)

    def function(self, name: str) -> str:
        """The nest as a C function."""
        result = f"{self.kind} to_{self.output}{self.extents}"
        lines = [f"EMX_NODE_FN void {name}({', '.join([*self.reads.values(), result])}) {{"]
        place = ""
        for i, extent in enumerate(self.shape):
            lines.append(f"{'    ' * (i + 1)}for (idx_t i{i} = 0; i{i} < {extent}; ++i{i}) {{")
            place += f"[i{i}]"
        depth = "    " * (len(self.shape) + 1)
        lines += [f"{depth}{statement}" for statement in self.before]
        lines.append(f"{depth}to_{self.output}{place} = {self.value};")
        lines += [f"{'    ' * i}}}" for i in range(len(self.shape), -1, -1)]
        return "\n".join(lines) + "\n"


def join_loops(text: str) -> str:
    """The C with such loops joined.

    Args:
        text: Of one generated function, which calls one for each node, and of those.
    """
    functions = {match["name"]: match for match in _FUNCTION.finditer(text)}
    calls = list(_CALL.finditer(text))
    readers: dict[str, int] = {}
    for call in calls:
        for name in call["arguments"].split(", ")[:-1]:
            readers[name] = readers.get(name, 0) + 1
    nests: dict[str, tuple[re.Match[str], _Nest]] = {}
    dropped: set[str] = set()
    changed: dict[str, _Nest] = {}
    for call in calls:
        nest = _nest(functions.get(call["name"]), call["arguments"].split(", "))
        if nest is None:
            continue
        for name in list(nest.reads):
            feeder = nests.get(name)
            # Whoever else reads the temporary needs it as a whole, and so does the caller of an
            # output, which has another name.
            if feeder is not None and name.startswith("tmp") and readers[name] == 1:
                both = nest.fed_by(feeder[1])
                if both is not None:
                    nest = changed[call["name"]] = both
                    dropped.add(feeder[0]["name"])
        nests[nest.output] = call, nest

    def function(match: re.Match[str]) -> str:
        name = match["name"]
        if name in dropped:
            return ""
        return changed[name].function(name) if name in changed else match[0]

    def called(match: re.Match[str]) -> str:
        name = match["name"]
        if name in dropped:
            return ""
        if name not in changed:
            return match[0]
        return f"    {name}({', '.join([*changed[name].reads, changed[name].output])});\n"

    text = _CALL.sub(called, _FUNCTION.sub(function, text))
    unused = [call["arguments"].split(", ")[-1] for call in calls if call["name"] in dropped]
    for name in unused:
        text = re.sub(rf"^    \w+ {name}(?:\[\d+\])+;\n", "", text, flags=re.MULTILINE)
    return text


def _nest(match: re.Match[str] | None, arguments: list[str]) -> _Nest | None:
    """The loops of a function that is called with some arguments; None where they are not such."""
    if match is None:
        return None
    parameters = [_PARAMETER.fullmatch(one) for one in match["parameters"].split(", ")]
    if None in parameters or len(parameters) != len(arguments):
        return None
    value, reads = match["value"], {}
    *inputs, output = [one for one in parameters if one is not None]
    bounds = re.findall(r"< (\d+);", match["loops"])
    if output["name"] != match["output"] or re.findall(r"\d+", output["extents"]) != bounds:
        return None
    if prod(map(int, bounds)) < _LARGE:  # it stays in the first cache anyway
        return None
    for i, bound in enumerate(bounds):  # the generator writes either where there is one element
        value = value.replace(f"[i{i}]", "[0]") if bound == "1" else value
    for one, argument in zip(inputs, arguments, strict=False):
        reads[argument] = f"const {one['kind']} from_{argument}{one['extents']}"
        value = re.sub(rf"\b{one['name']}\[", f"from_{argument}[", value)
        # The argument is used whole, or in a place that the replacement above does not know.
        if re.search(rf"\b{one['name']}\b", value):
            return None
    return _Nest(reads, (), value, output["kind"], output["extents"], arguments[-1])
