"""What to write for a module that is no step yet: the call of `lift` that fits it.

A copy of the module is called a few times with guessed inputs. What changed, and what the next
answer depends on, is its memory. Where no guess fits, its code is read.
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
from torch.utils import _pytree as pytree

from stategate.contract.failures import failures
from stategate.models.lifting.copies import copied
from stategate.models.lifting.programs import EXPORTED, TORCHSCRIPT, WEIGHTS
from stategate.models.lifting.slots import Value, cloned, memory_like, put, value_at, zeros_like

# Names that arguments have which are taken and given back; the rest are inputs.
_HANDED_IN = re.compile(
    r"(rnn_|lstm_|gru_|past_|prev_)?(hidden|cell|state|memory|cache|carry|key_values|hx|[hc]0?)s?"
    r"(_in|_params|_states?)?"
)
_SWITCH = re.compile(r"use_cache|return_(hidden|state|cache|carry|memory|next).*")
_STEPS = ("step", "select_action", "get_action", "get_action_and_value", "act", "predict")
_WRAPS = ("_orig_mod", "_original_module", "_forward_module", "module")
_LAYERS = 12  # whose sizes are tried
_CHANGES = re.compile(r"append|appendleft|extend|update|put|push|.*[a-z]_")


class _Call(NamedTuple):
    """A call that worked: of which method, with what, and whether any other form would do."""

    method: str
    inputs: dict[str, Tensor]
    hidden: dict[str, Value]
    vague: bool


def unwrapped(made: object) -> tuple[object, str]:
    """What `torch.compile`, DataParallel and their like are around, and how to get there."""
    path = ""
    while isinstance(made, nn.Module):
        children = dict(made.named_children())
        name = next((n for n in _WRAPS if n in children), "")
        own = inspect.getattr_static(type(made), "forward", None)  # TorchScript's cannot be read
        takes = list(inspect.signature(own).parameters.values()) if inspect.isfunction(own) else []
        passes_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in takes[1:])
        # torch.compile's has no forward of its own that could be read.
        if not name or not (passes_on or name == "_orig_mod"):
            break
        made, path = children[name], f"{path}.{name}"
    return made, path


def offer(made: object) -> str:
    """Source of a ``lift`` call with the buffers and arguments that are memory.

    Args:
        made: What the user's factory gave.
    """
    if isinstance(made, torch.jit.ScriptModule):
        return TORCHSCRIPT.format(file="policy.pt")
    if isinstance(made, torch.export.ExportedProgram):
        return EXPORTED.format(file="policy.pt2")
    if isinstance(made, dict):
        return WEIGHTS.format(file="weights.pt")
    made, path = unwrapped(made)
    if not isinstance(made, nn.Module):
        return "the factory has to return a torch.nn.Module"
    methods = [m for m in ("forward", *_STEPS) if _defines(made, m)]
    found = [(call, _remembered(made, call)) for m in methods if (call := _called(made, m))]
    with_memory = [(call, states) for call, states in found if states or call.hidden]
    # What no guess could call may still say in its code that it is the step.
    silent = [m for m in methods if m not in {call.method for call, _ in found}]
    guess = next(_stepping(made, silent), None)
    call, states = next(iter(with_memory or ([] if guess else found)), (None, []))
    method = call.method if call else guess or "forward"
    parameters = inspect.signature(getattr(made, method)).parameters
    if not call:
        states = list(_assigned_and_read(made, method))
    switches = [name for name in parameters if _SWITCH.fullmatch(name)]
    hidden = call.hidden if call else {n: None for n in parameters if _HANDED_IN.fullmatch(n)}
    if call and not states and not hidden and not switches:
        if _depends_on_the_past(made, call):
            return (
                "its answers depend on earlier calls, and none of its attributes says how: move "
                "what a closure, a global variable or a class remembers into a buffer, and name "
                "that in the states of lift()"
            )
        return (
            "calls with guessed inputs changed nothing that a later answer depends on; where that "
            "is so with yours, it has no memory, and ONNX Runtime alone will do"
        )
    return _source(f"module{path}", method, parameters, states, hidden, switches, call)


def _source(
    module: str,
    method: str,
    parameters: Mapping[str, inspect.Parameter],
    states: list[str],
    hidden: Mapping[str, Value],
    switches: list[str],
    call: _Call | None,
) -> str:
    """One sentence, with a call of lift that can be pasted as far as its forms are known."""
    inputs = call.inputs if call else dict.fromkeys(_inputs_of(parameters))
    forms = [
        f"{n!r}: {'torch.zeros(1, ...)' if t is None or call and call.vague else zeros_like(t)}"
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
    said = "" if name == module else f", where MODULE is {module}"
    seen = "seen in calls of a copy" if call else "read in its code, for no guessed input fitted"
    return f"return stategate.models.lift({name}, {', '.join(parts)}){said}; {seen}"


def _defines(module: nn.Module, method: str) -> bool:
    own = getattr(type(module), method, None)
    return inspect.isfunction(own) and own is not nn.Module.forward


def _stepping(module: nn.Module, methods: list[str]) -> Iterator[str]:
    """Methods that are handed a memory or change one, in the order of how likely they are meant."""
    for method in methods:
        names = inspect.signature(getattr(module, method)).parameters
        if any(_HANDED_IN.fullmatch(name) for name in names) or _assigned_and_read(module, method):
            yield method


def _called(module: nn.Module, method: str) -> _Call | None:
    """The first call with guessed inputs that works; of a copy."""
    parameters = inspect.signature(getattr(module, method)).parameters
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    needed = [n for n, p in named.items() if p.default is p.empty]
    hidden = [n for n in needed if _HANDED_IN.fullmatch(n)]
    optional = {n: None for n in named if n not in needed and _HANDED_IN.fullmatch(n)}
    inputs = _inputs_of(parameters)
    sized = [*_examples(module)]
    guesses = sized or [torch.ones(shape) for shape in ((1, 4), (1, 1), (1, 1, 4))]
    for example, memory in product(guesses, _memories(module) if hidden else [None]):
        given = {n: example for n in inputs} | {n: cloned(memory) for n in hidden}
        try:
            with torch.no_grad():
                result = getattr(copied(module).eval(), method)(**given)
        except failures():  # a guess that does not fit may fail with anything
            continue
        # A lone tensor is the answer: an argument that may be left out does not come back.
        lone = isinstance(result, torch.Tensor)
        held = {n: given[n] for n in hidden} | ({} if lone else optional)
        return _Call(method, {n: example for n in inputs}, held, not sized)
    return None


def _inputs_of(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Arguments that are no memory: those without a default, or the first if all have one."""
    rest = [
        p
        for n, p in parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and not (_HANDED_IN.fullmatch(n) or _SWITCH.fullmatch(n))
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
def _run(copy: nn.Module, call: _Call, scale: float) -> Value:
    """One more call, with inputs that are the same for the same scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {n: _drawn(t, scale) for n, t in call.inputs.items()}
        held = {n: cloned(v) for n, v in call.hidden.items() if v is not None}
        return cloned(getattr(copy, call.method)(**given, **held))


def _depends_on_the_past(module: nn.Module, call: _Call) -> bool:
    copy = copied(module).eval()
    first, _, again = (_outcome(copy, call, scale) for scale in (3.0, 1.0, 3.0))
    return not _equal(first, again)


def _remembered(module: nn.Module, call: _Call) -> list[str]:
    """Attributes that a call changes and that the next one depends on."""
    try:
        fresh, used = copied(module).eval(), copied(module).eval()
        for scale in (1.0, 2.0):
            _run(used, call, scale)
        changed = [n for n, v in _values(used) if not _equal(v, value_at(fresh, n))]
        states = []
        for name in changed:
            one, other = copied(used), copied(used)
            put(other, name, cloned(value_at(fresh, name)))
            pairs = [tuple(_outcome(copy, call, 3.0) for copy in (one, other))]
            pairs += [(value_at(one, n), value_at(other, n)) for n in changed]
            if not all(_equal(*pair) for pair in pairs):
                states.append(name)
    except failures():  # a second call of a user's code may raise anything
        return list(_assigned_and_read(module, call.method))
    return states


def _outcome(copy: nn.Module, call: _Call, scale: float) -> Value:
    try:
        return _run(copy, call, scale)
    except failures() as problem:
        return type(problem).__name__


def _drawn(example: Tensor, scale: float) -> Tensor:
    return scale * torch.randn_like(example) if example.is_floating_point() else example.clone()


def _values(module: nn.Module) -> Iterator[tuple[str, Value]]:
    """Buffers and attributes that hold tensors, numbers or containers of them."""
    for prefix, part in module.named_modules():
        for name, value in {**vars(part), **part._buffers}.items():
            if name in _OWN or isinstance(value, (nn.Module, nn.Parameter)) or callable(value):
                continue
            yield f"{prefix}.{name}" if prefix else name, value


_OWN = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}


def _equal(one: Value, other: Value) -> bool:
    (a, tree), (b, other_tree) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return tree == other_tree and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y
        for x, y in zip(a, b, strict=True)
    )


def _assigned_and_read(module: nn.Module, method: str) -> dict[str, None]:
    """Attributes that the code of a step changes and reads, in the module and its parts."""
    found: dict[str, None] = {}
    held = {*memory_like(module), *(name for name, _ in _values(module))}
    for prefix, part in module.named_modules():
        if type(part).__module__.startswith("torch."):
            continue
        changed: dict[str, None] = {}
        read: set[str] = set()
        _scan(type(part), method if part is module else "forward", changed, read, set())
        dotted = {name: f"{prefix}.{name}" if prefix else name for name in changed}
        found |= {dotted[n]: None for n in changed if n in read and dotted[n] in held}
    return found


def _scan(
    kind: type, method: str, changed: dict[str, None], read: set[str], seen: set[str]
) -> None:
    """Follow a method and those of its own that it calls."""
    if method in seen or not inspect.isfunction(own := getattr(kind, method, None)):
        return
    seen.add(method)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
    except (OSError, TypeError, SyntaxError):
        return
    definition = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
    this = next((a.arg for a in (*definition.args.posonlyargs, *definition.args.args)), "self")

    def of_this(node: ast.AST) -> str | None:
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        return node.attr if own and node.value.id == this else None  # type: ignore[attr-defined]

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if (name := of_this(node.func)) is not None:
                _scan(kind, name, changed, read, seen)
            elif (name := of_this(node.func.value)) and _CHANGES.fullmatch(node.func.attr):
                changed[name] = None
        if isinstance(node, (ast.Subscript, ast.AugAssign)):
            target = node.value if isinstance(node, ast.Subscript) else node.target
            stored = isinstance(node, ast.AugAssign) or isinstance(node.ctx, ast.Store)
            if stored and (name := of_this(target)) is not None:
                changed[name] = None
                read.add(name)
        if isinstance(node, ast.Attribute) and (name := of_this(node)) is not None:
            if isinstance(node.ctx, ast.Store):
                changed[name] = None
            else:
                read.add(name)
