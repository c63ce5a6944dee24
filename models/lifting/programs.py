"""Saved programs: what torch.export wrote is taken, and of the others is said what to do."""

from __future__ import annotations

import inspect
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stategate.contract.errors import TraceError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

TORCHSCRIPT = (
    "TorchScript has lost the Python code that is traced: build the module again in a factory, "
    'and give it the weights of the program: module.load_state_dict(torch.jit.load("{file}")'
    '.state_dict()). print(torch.jit.load("{file}").code) shows what it computes'
)
EXPORTED = (
    "in a factory, with its inputs by name and what of it is memory: "
    'return stategate.models.lift(torch.export.load("{file}"), {{"x": torch.zeros(1, ...)}}, '
    'states=["program.NAME"]); hidden={{"h": torch.zeros(...)}} where it takes and returns it'
)
WEIGHTS = (
    "build the module in a factory and load it there: "
    'module.load_state_dict(torch.load("{file}", weights_only=True)); a whole module that was '
    'saved is torch.load("{file}", weights_only=False)'
)
SAFETENSORS = (
    "build the module in a factory and load it there: "
    'module.load_state_dict(safetensors.torch.load_file("{file}"))'
)


def kind_of_file(path: Path) -> tuple[str, str] | None:
    """What a file of torch holds, in words, and what to do with it; None for any other file."""
    if path.suffix == ".safetensors":
        return "weights without the module", SAFETENSORS.format(file=path)
    if not path.is_file() or path.suffix not in (".pt", ".pt2", ".pth", ".ckpt", ".jit", ".ts"):
        return None
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    inside = {name.split("/")[1] for name in names if "/" in name}
    if "code" in inside:
        return "a TorchScript program", TORCHSCRIPT.format(file=path)
    if path.suffix == ".pt2" or "archive_format" in inside:
        return "an exported program", EXPORTED.format(file=path)
    return "a pickle of torch, of weights or of a module", WEIGHTS.format(file=path)


def module_of(program: nn.Module | ExportedProgram) -> nn.Module:
    """A module as it is, and an exported program as one; it then lies below ``program``.

    The module of a program takes its inputs by name, those inside of tuples and dicts one by one.
    """
    import torch
    from torch import nn
    from torch.utils import _pytree as pytree

    if isinstance(program, torch.jit.ScriptModule):
        raise TraceError(
            "a TorchScript program has no code to trace",
            found=type(program).__name__,
            expected="a torch.nn.Module, or what torch.export.load gives",
            remedy=TORCHSCRIPT.format(file="policy.pt"),
        )
    if isinstance(program, nn.Module):
        return program
    names = [str(name) for name in program.graph_signature.user_inputs]
    form = program.call_spec.in_spec

    def forward(self: Any, **inputs: Any) -> Any:
        args, kwargs = pytree.tree_unflatten([inputs[name] for name in names], form)
        return self.program(*args, **kwargs)

    def train(self: Any, _: bool = True) -> Any:
        return self  # a program is what it was when it was exported

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    forward.__signature__ = inspect.Signature([own, *named])  # type: ignore[attr-defined]
    methods: dict[str, Any] = {"forward": forward, "train": train}
    module: nn.Module = type("Program", (nn.Module,), methods)()
    module.program = program.module()
    return module
