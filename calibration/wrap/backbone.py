"""The frozen backbone of a policy: from observations to features, wherever it runs."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stategate.common.onnx_runtime import one_thread
from stategate.common.user_file import build_from_file
from stategate.contract import TensorSpec
from stategate.contract.errors import CalibrationError, TraceError
from stategate.contract.failures import failures, first_line
from stategate.contract.reading import FILE_BYTES, read_bounded
from stategate.models.load import in_evaluation
from stategate.models.memories.wrapped import FEATURES
from stategate.models.weights import weights_sha256

Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"
BackboneSource: TypeAlias = "nn.Module | Callable[[], nn.Module] | str | Path | None"

_AT_ONCE = 256  # frames
_LOOKED_AT = 16  # frames that are asked for twice
_ALIKE = 1e-4  # of the features' size: what batching and another order may change


@dataclass(frozen=True, slots=True)
class Backbone:
    """What gives features, as the training sees it."""

    source: str  # what the user named
    sha256: str  # digest of its weights or file; empty where it runs elsewhere
    module: nn.Module | None  # it, where it is of torch
    onnx: bytes | None  # it, where it is a file
    inputs: tuple[TensorSpec, ...]  # what it takes, in its own order
    # from inputs ``(frames, 1, ...)`` to features ``(frames, features)`` float32
    run: Callable[[Arrays], NDArray[np.float32]]


@contextmanager
def opened(source: BackboneSource, inputs: Sequence[TensorSpec]) -> Iterator[Backbone]:
    """A backbone that takes the recorded inputs; a module is as before afterwards."""
    if source is None:
        if [tensor.name for tensor in inputs] != [FEATURES] or len(inputs[0].shape) != 2:
            raise CalibrationError(
                "without a backbone the recordings must hold its features",
                found=_described(inputs),
                expected=f"one input, input.{FEATURES} [steps, 1, features]",
                remedy="name the backbone, or record what it gives",
            )
        yield Backbone("recorded features", "", None, None, tuple(inputs), _flat)
    elif isinstance(source, str | Path) and str(source).endswith(".onnx"):
        raw = read_file(Path(source))
        run = _onnx(raw, str(source), inputs)
        digest = hashlib.sha256(raw).hexdigest()
        yield Backbone(str(source), digest, None, raw, tuple(inputs), run)
    else:
        module, name = _module(source)
        order = _order(module, inputs)
        with in_evaluation(module):
            by_name = {tensor.name: tensor for tensor in inputs}
            takes = tuple(by_name[each] for each in order)
            run = _torch(module, order)
            yield Backbone(name, weights_sha256(module), module, None, takes, run)


def read_file(path: Path) -> bytes:
    """The bytes of a backbone's file."""
    try:
        return read_bounded(path, FILE_BYTES)
    except failures(OSError) as problem:
        raise CalibrationError(
            "the backbone cannot be read", found=problem, expected="an .onnx file"
        ) from problem


def checked_features(backbone: Backbone, inputs: Arrays, first: int = 0) -> NDArray[np.float32]:
    """Features of consecutive frames, none of which depends on another.

    Args:
        backbone: What gives them.
        inputs: By name, ``(frames, 1, ...)``.
        first: Number of the first frame, for messages.
    """
    features = backbone.run(inputs)
    few = {name: array[:_LOOKED_AT] for name, array in inputs.items()}
    again = backbone.run({name: array[::-1] for name, array in few.items()})[::-1]
    gap = _gap(again, features[:_LOOKED_AT])
    if gap > _ALIKE:
        raise CalibrationError(
            "the backbone gives other features for the same inputs in another order",
            found=f"{backbone.source}: a difference of {gap:.2g} of their size",
            expected="a backbone without a memory of its own, which draws nothing at random",
            remedy="a policy with a memory becomes a bundle with: stategate export, or adopt",
        )
    bad = ~np.isfinite(features).all(1)
    if bad.any():
        raise CalibrationError(
            "the backbone gives features that are not finite",
            found=f"NaN or Inf in step {first + int(bad.argmax())}",
            expected="finite numbers",
        )
    return features


def _gap(one: NDArray[Any], other: NDArray[Any]) -> float:
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0  # which is refused by name later
    size = float(np.abs(other).max(initial=0.0))
    return float(np.abs(one - other).max(initial=0.0)) / (size or 1.0)


def _flat(inputs: Arrays) -> NDArray[np.float32]:
    (array,) = inputs.values()
    return np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.float32)


def _module(source: object) -> tuple[nn.Module, str]:
    if isinstance(source, str | Path):
        built, name = build_from_file(str(source), TraceError), str(source)
    elif not isinstance(source, nn.Module) and callable(source):
        built, name = source(), f"Python, {getattr(source, '__qualname__', 'a function')}"
    else:
        built, name = source, f"Python, {type(source).__qualname__}"
    if not isinstance(built, nn.Module):
        raise CalibrationError(
            "this is no backbone",
            found=f"{type(built).__name__} from {name}",
            expected="a torch.nn.Module that gives features, an .onnx file, or None and recorded "
            "features",
        )
    return built, name


def _order(module: nn.Module, inputs: Sequence[TensorSpec]) -> list[str]:
    """The recorded inputs in the order of the module's arguments."""
    names = [tensor.name for tensor in inputs]
    arguments = inspect.signature(module.forward).parameters.values()
    takes = [p.name for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needs = [p.name for p in arguments if p.default is p.empty and p.name in takes]
    if len(names) == 1 and len(needs) <= 1 and (takes or arguments):
        return names
    if set(needs) <= set(names) and set(names) == set(takes[: len(names)]):
        return takes[: len(names)]
    raise CalibrationError(
        "the backbone does not take what is recorded",
        found=f"recorded: {', '.join(names)}; forward({', '.join(takes)})",
        expected="one recorded input, or inputs with the names of forward's arguments",
        remedy="rename the recordings' inputs, or wrap the backbone in a module that takes them",
    )


def _torch(module: nn.Module, order: Sequence[str]) -> Callable[[Arrays], NDArray[np.float32]]:
    @torch.no_grad()
    def ask(inputs: Arrays) -> NDArray[np.float32]:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[n]).copy()) for n in order]
        # The house's leading axis of 1 is that of the batch.
        answer = module(*(tensor.flatten(0, 1) for tensor in tensors))
        if not isinstance(answer, torch.Tensor) or answer.shape[:1] != (len(tensors[0]),):
            raise CalibrationError(
                "a backbone must give one tensor, whose first axis is that of its inputs",
                found=str(tuple(answer.shape))
                if isinstance(answer, torch.Tensor)
                else type(answer).__name__,
                expected=f"features ({len(tensors[0])}, ...) for inputs "
                + ", ".join(str(tuple(tensor.flatten(0, 1).shape)) for tensor in tensors),
                remedy="wrap it in a module whose forward gives the features alone",
            )
        return np.asarray(answer.flatten(1).float().cpu().numpy())

    def cut(inputs: Arrays, at: int, frames: int) -> dict[str, NDArray[Any]]:
        return {name: array[at : at + frames] for name, array in inputs.items()}

    def run(inputs: Arrays) -> NDArray[np.float32]:
        frames = len(next(iter(inputs.values())))
        try:
            first = ask(cut(inputs, 0, 1))
            # A module that mixes rows, or takes one alone, is asked frame by frame.
            whole = _whole(ask, cut(inputs, 0, _LOOKED_AT))
            at_once = 1 if whole is None or _gap(whole[:1], first) > _ALIKE else _AT_ONCE
            parts = [ask(cut(inputs, at, at_once)) for at in range(0, frames, at_once)]
        except failures(RuntimeError, TypeError, ValueError, IndexError) as problem:
            shapes = {name: array.shape[1:] for name, array in inputs.items()}
            raise CalibrationError(
                "the backbone cannot take a recorded frame",
                found=first_line(problem),
                expected=f"a forward that takes {shapes}",
            ) from problem
        return np.concatenate(parts)

    return run


def _whole(
    ask: Callable[[Arrays], NDArray[np.float32]], inputs: Arrays
) -> NDArray[np.float32] | None:
    try:
        return ask(inputs)
    except failures(RuntimeError, ValueError, IndexError):
        return None


def _onnx(
    raw: bytes, name: str, inputs: Sequence[TensorSpec]
) -> Callable[[Arrays], NDArray[np.float32]]:
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(
            raw, one_thread(ort.SessionOptions()), providers=["CPUExecutionProvider"]
        )
    except failures() as problem:  # its errors have no common class
        raise CalibrationError(
            "the backbone cannot be opened", found=f"{name}: {first_line(problem)}"
        ) from problem
    takes, gives = session.get_inputs(), session.get_outputs()
    names = [tensor.name for tensor in inputs]
    renamed = {names[0]: takes[0].name} if len(names) == len(takes) == 1 else {n: n for n in names}
    chosen = [o.name for o in gives if o.name == FEATURES] or [o.name for o in gives]
    if sorted(renamed.values()) != sorted(tensor.name for tensor in takes) or len(chosen) > 1:
        raise CalibrationError(
            "the backbone does not fit the recordings",
            found=f"{name}: inputs {', '.join(t.name for t in takes)}; "
            f"outputs {', '.join(o.name for o in gives)}",
            expected=f"inputs {', '.join(names)}; one output, or one named {FEATURES}",
            remedy="rename the recordings' inputs, or cut the file with onnx.utils.extract_model",
        )

    def run(inputs: Arrays) -> NDArray[np.float32]:
        rows = []
        try:
            for t in range(len(next(iter(inputs.values())))):
                feeds = {renamed[n]: np.ascontiguousarray(a[t]) for n, a in inputs.items()}
                answer = cast("NDArray[Any]", session.run(chosen, feeds)[0])
                rows.append(np.asarray(answer, np.float32).reshape(-1))
        except failures() as problem:  # as above
            shapes = {n: f"{a.dtype} {a.shape[1:]}" for n, a in inputs.items()}
            raise CalibrationError(
                "the backbone cannot take a recorded frame",
                found=f"{name}: {first_line(problem)}",
                expected=f"a graph that takes {shapes}",
            ) from problem
        return np.stack(rows)

    return run


def _described(inputs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"input.{t.name} [steps, {', '.join(map(str, t.shape))}]" for t in inputs)
