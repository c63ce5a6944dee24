"""What to write for a module that is no step yet: the call of `lift` that fits it.

A copy of the module is called with guessed inputs. What changed, and what the next answer depends
on, is its memory. Where no guess fits, its code is read.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stategate.contract.failures import failures
from stategate.models.lifting.copies import copied
from stategate.models.lifting.programs import EXPORTED, TORCHSCRIPT, WEIGHTS
from stategate.models.lifting.slots import (
    as_tensor,
    attributes_of,
    cloned,
    put,
    value_at,
    zeros_like,
)
from stategate.models.lifting.trees import Value, flattened, is_same

# Names of arguments that a step takes and gives back; the rest are inputs.
_MEMORY_NAME = re.compile(
    r"(rnn_|lstm_|gru_|past_|prev_)?(hidden|cell|state|memory|cache|carry|key_values|hx|[hc]0?)s?"
    r"(_in|_params|_states?)?"
)
_SWITCH = re.compile(r"use_cache|return_(hidden|state|cache|carry|memory|next).*")
_STEPS = (
    *("forward", "step", "select_action"),
    *("get_action", "get_action_and_value", "act", "predict"),
)
_WRAPPERS = ("_orig_mod", "_original_module", "_forward_module", "module")
_LAYERS = 12  # whose sizes are tried
_MUTATOR = re.compile(r"append|appendleft|extend|update|put|push|.*[a-z]_")

_CLOSURE = (
    "its answers depend on earlier calls, and none of its attributes says how: move what a "
    "closure, a global variable or a class remembers into a buffer, and name that in the states "
    "of lift()"
)
_NO_MEMORY = (
    "calls with guessed inputs changed nothing that a later answer depends on; where that is so "
    "with yours, it has no memory, and ONNX Runtime alone will do"
)


class _Call(NamedTuple):
    """A call that worked; ``vague`` where inputs of any other form might do as well."""

    method: str
    inputs: dict[str, Tensor]
    hidden: dict[str, Value]
    vague: bool


def unwrapped(built: object) -> tuple[object, str]:
    """What `torch.compile`, DataParallel and their like are around, and how to get there."""
    path = ""
    while isinstance(built, nn.Module):
        children = dict(built.named_children())
        name = next((n for n in _WRAPPERS if n in children), "")
        forward = inspect.getattr_static(type(built), "forward", None)
        is_python = inspect.isfunction(forward)  # TorchScript's cannot be read
        takes = [*inspect.signature(forward).parameters.values()] if is_python else []
        passes_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in takes[1:])
        # torch.compile's wrapper has no forward of its own that could be read.
        if not name or not (passes_on or name == "_orig_mod"):
            break
        built, path = children[name], f"{path}.{name}"
    return built, path


def offer(built: object) -> str:
    """Source of a ``lift`` call with the buffers and arguments that are memory."""
    if isinstance(built, torch.jit.ScriptModule):
        return TORCHSCRIPT.format(file="policy.pt")
    if isinstance(built, torch.export.ExportedProgram):
        return EXPORTED.format(file="policy.pt2")
    if isinstance(built, dict):
        return WEIGHTS.format(file="weights.pt")
    module, path = unwrapped(built)
    if not isinstance(module, nn.Module):
        return "the factory has to return a torch.nn.Module"
    methods = [name for name in _STEPS if _defines(module, name)]
    calls = [(call, _remembered(module, call)) for m in methods if (call := _called(module, m))]
    silent = [m for m in methods if m not in {call.method for call, _ in calls}]
    # A method that no guess could call may still say in its code that it is the step.
    guess = next((m for m in silent if _looks_like_a_step(module, m)), None)
    with_memory = [(call, states) for call, states in calls if states or call.hidden]
    call, states = next(iter(with_memory or ([] if guess else calls)), (None, []))
    method = call.method if call else guess or "forward"
    parameters = inspect.signature(getattr(module, method)).parameters
    switches = [name for name in parameters if _SWITCH.fullmatch(name)]
    if call is None:
        states = _changed_in_code(module, method)
        hidden = {n: None for n in parameters if _MEMORY_NAME.fullmatch(n)}
    else:
        hidden = call.hidden
        if not (states or hidden or switches):
            return _CLOSURE if _depends_on_the_past(module, call) else _NO_MEMORY
    dicts = {} if call else _dicts(module, method)
    return _source(f"module{path}", method, parameters, states, hidden, switches, call, dicts)


def _source(
    module: str,
    method: str,
    parameters: Mapping[str, inspect.Parameter],
    states: list[str],
    hidden: Mapping[str, Value],
    switches: list[str],
    call: _Call | None,
    dicts: Mapping[str, list[str]],
) -> str:
    """One sentence, with a call of lift that can be pasted as far as its forms are known."""
    inputs = call.inputs if call else dict.fromkeys(_inputs_of(parameters))
    is_vague = call is not None and call.vague
    forms = [
        f"{n!r}: {_form_of_dict(dicts[n])}"
        if n in dicts
        else f"{n!r}: {'torch.zeros(1, ...)' if t is None or is_vague else zeros_like(t)}"
        for n, t in inputs.items()
    ]
    parts = [f"{{{', '.join(forms)}}}"]
    if states:
        parts.append(f"states={states}")
    if hidden or not states:
        unknown = {
            n: "torch.zeros(...)" if p.default is p.empty else "None" for n, p in parameters.items()
        }
        values = [f"{n!r}: {unknown[n] if v is None else zeros_like(v)}" for n, v in hidden.items()]
        parts.append(f"hidden={{{', '.join(values) or 'ARGUMENT: torch.zeros(...)'}}}")
    if switches:
        module += f" with {' and '.join(f'{name}=True' for name in switches)}"
    if method != "forward":
        arguments = ", ".join(parameters)
        module = f"a module whose forward({arguments}) returns {module}.{method}({arguments})"
    name = module if module.replace(".", "").replace("_", "").isalnum() else "MODULE"
    where = "" if name == module else f", where MODULE is {module}"
    how = "seen in calls of a copy" if call else "read in its code, for no guessed input fitted"
    if dict_names := [n for n in inputs if n in dicts]:
        how = f"{method} takes a dict of tensors as {' and '.join(dict_names)}; {how}"
    return f"return stategate.models.lift({name}, {', '.join(parts)}){where}; {how}"


def _form_of_dict(keys: list[str]) -> str:
    return f"{{{', '.join(f'{key!r}: torch.zeros(1, ...)' for key in keys or ['KEY'])}}}"


def _defines(module: nn.Module, method: str) -> bool:
    function = getattr(type(module), method, None)
    return inspect.isfunction(function) and function is not nn.Module.forward


def _looks_like_a_step(module: nn.Module, method: str) -> bool:
    names = inspect.signature(getattr(module, method)).parameters
    takes_memory = any(_MEMORY_NAME.fullmatch(name) for name in names)
    return takes_memory or bool(_changed_in_code(module, method))


# --- calls of a copy ------------------------------------------------------------------------------


def _called(module: nn.Module, method: str) -> _Call | None:
    """The first call with guessed inputs that works; of a copy."""
    parameters = inspect.signature(getattr(module, method)).parameters
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    memory = [n for n in named if _MEMORY_NAME.fullmatch(n)]
    needed = [n for n in memory if named[n].default is named[n].empty]
    inputs, sized = _inputs_of(parameters), [*_examples(module)]
    guesses = sized or [torch.ones(shape) for shape in ((1, 4), (1, 1), (1, 1, 4))]
    for example, value in product(guesses, _memories(module) if needed else [None]):
        arguments = {n: example for n in inputs} | {n: cloned(value) for n in needed}
        try:
            with torch.no_grad():
                result = getattr(copied(module).eval(), method)(**arguments)
        except failures():  # a guess that does not fit may fail with anything
            continue
        # A lone tensor is the answer: an argument that may be left out does not come back.
        names = needed if isinstance(result, Tensor) else memory
        hidden = {n: arguments.get(n) for n in sorted(names, key=lambda n: n not in needed)}
        return _Call(method, {n: example for n in inputs}, hidden, not sized)
    return None


def _inputs_of(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Arguments that are no memory: those without a default, or the first if all have one."""
    rest = [
        p
        for n, p in parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and not (_MEMORY_NAME.fullmatch(n) or _SWITCH.fullmatch(n))
    ]
    return [p.name for p in rest if p.default is p.empty] or [p.name for p in rest[:1]]


def _examples(module: nn.Module) -> Iterator[Tensor]:
    """Inputs that one of the first layers may take."""
    for part in list(module.modules())[:_LAYERS]:
        if isinstance(part, nn.Embedding):
            yield from (torch.zeros(shape, dtype=torch.int64) for shape in ((1, 1), (1,)))
        for name in ("in_features", "input_size", "in_channels"):
            size = getattr(part, name, None)
            if isinstance(size, int):
                shapes: list[tuple[int, ...]] = [(1, size), (1, 1, size), (size,)]
                shapes += [(1, size, 64), (1, size, 64, 64)] if name == "in_channels" else []
                yield from map(torch.ones, shapes)


def _memories(module: nn.Module) -> Iterator[Value]:
    """What the memory of the first recurrent part may be, or of one that names its width."""
    for part in module.modules():
        size, layers = getattr(part, "hidden_size", None), getattr(part, "num_layers", 1)
        if isinstance(size, int) and isinstance(layers, int):
            flat, deep = torch.zeros(1, size), torch.zeros(layers, 1, size)
            yield from (flat, deep, (flat, flat), (deep, deep))
    yield None


@torch.no_grad()
def _answer(copy: nn.Module, call: _Call, scale: float) -> Value:
    """One more call, with inputs that are the same for the same scale; a failure by its type."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = {
            n: scale * torch.randn_like(t) if t.is_floating_point() else t.clone()
            for n, t in call.inputs.items()
        }
        hidden = {n: cloned(v) for n, v in call.hidden.items() if v is not None}
        try:
            return cloned(getattr(copy, call.method)(**inputs, **hidden))
        except failures() as problem:  # a user's code may raise anything
            return type(problem)


def _depends_on_the_past(module: nn.Module, call: _Call) -> bool:
    copy = copied(module).eval()
    first, _, again = (_answer(copy, call, scale) for scale in (3.0, 1.0, 3.0))
    return not _equal(first, again)


def _remembered(module: nn.Module, call: _Call) -> list[str]:
    """Attributes that a call changes and that the next one depends on."""
    fresh, used = copied(module).eval(), copied(module).eval()
    if any(isinstance(_answer(used, call, scale), type) for scale in (1.0, 2.0)):
        return _changed_in_code(module, call.method)
    try:
        changed = [n for n, v in _values(used) if not _equal(v, value_at(fresh, n))]
        return [name for name in changed if _matters(used, fresh, call, name, changed)]
    except failures():  # comparing or copying a user's objects may raise anything
        return _changed_in_code(module, call.method)


def _matters(used: nn.Module, fresh: nn.Module, call: _Call, name: str, changed: list[str]) -> bool:
    """Whether a call answers, or leaves its memory, otherwise where one value is its first."""
    one, other = copied(used), copied(used)
    put(other, name, cloned(value_at(fresh, name)))
    return not (
        _equal(_answer(one, call, 3.0), _answer(other, call, 3.0))
        and all(_equal(value_at(one, n), value_at(other, n)) for n in changed)
    )


def _values(module: nn.Module) -> Iterator[tuple[str, Value]]:
    """Buffers and attributes that hold tensors, numbers or containers of them."""
    for name, value in attributes_of(module):
        if not (isinstance(value, (nn.Module, nn.Parameter)) or callable(value)):
            yield name, value


def _equal(one: Value, other: Value) -> bool:
    (a, tree), (b, other_tree) = flattened(one), flattened(other)
    pairs = [(as_tensor(x.value), as_tensor(y.value)) for x, y in zip(a, b, strict=False)]
    return tree == other_tree and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else is_same(x, y)
        for x, y in pairs
    )


# --- the code of a step ---------------------------------------------------------------------------


def _changed_in_code(module: nn.Module, method: str) -> list[str]:
    """Attributes that the code of a step changes and reads, in the module and its parts."""
    names = []
    for prefix, part in module.named_modules():
        if type(part).__module__.startswith("torch."):
            continue
        changed, read = dict[str, None](), set[str]()
        _scan(type(part), method if part is module else "forward", changed, read, set())
        names += [f"{prefix}.{name}" if prefix else name for name in changed if name in read]
    attributes = dict(attributes_of(module))
    return [name for name in names if name in attributes]


def _dicts(module: nn.Module, method: str) -> dict[str, list[str]]:
    """Arguments of a method that are dicts by annotation or by use, and the keys it reads."""
    function = inspect.unwrap(getattr(type(module), method))
    keys = {
        n: list[str]()
        for n, p in inspect.signature(function).parameters.items()
        if re.match(r"(typing\.)?(dict|Dict|Mapping)\b", inspect.formatannotation(p.annotation))
    }
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return keys
    names = inspect.signature(function).parameters
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            owner, key = getattr(node.value, "id", ""), getattr(node.slice, "value", None)
            if owner in names and isinstance(key, str) and key not in keys.setdefault(owner, []):
                keys[owner].append(key)
    return keys


def _scan(
    kind: type, method: str, changed: dict[str, None], read: set[str], visited: set[str]
) -> None:
    """Collect what a method changes and reads of ``self``, and those of its own that it calls."""
    function = getattr(kind, method, None)
    if method in visited or not inspect.isfunction(function):
        return
    visited.add(method)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return

    def attribute(node: ast.AST) -> str:
        """The name after ``self.``, or nothing."""
        is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        return node.attr if is_own and node.value.id == "self" else ""  # type: ignore[attr-defined]

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := attribute(node)):
            if isinstance(node.ctx, ast.Store):
                changed[name] = None
            else:
                read.add(name)
        elif isinstance(node, ast.AugAssign) and (name := attribute(node.target)):
            read.add(name)  # ``self.count += 1`` reads what it stores
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if name := attribute(node.value):
                changed[name] = None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            _scan(kind, attribute(node.func), changed, read, visited)
            if _MUTATOR.fullmatch(node.func.attr) and (name := attribute(node.func.value)):
                changed[name] = None
