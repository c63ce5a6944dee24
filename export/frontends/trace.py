"""From a torch module to one branch-free ONNX step, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import numpy as np
import onnx
import torch
from torch import nn

from stategate.contract import VALID, StepSpec, batched, chunked
from stategate.contract.errors import SpecError, StategateError, TraceError
from stategate.contract.failures import failures
from stategate.export.frontends.float64 import Float64Numbers
from stategate.export.frontends.rows import check_rows_stand_alone
from stategate.export.frontends.trace_settings import quiet, with_operators
from stategate.export.memory.undeclared import undeclared
from stategate.export.memory.watch import Watch
from stategate.export.passes.graph import (
    check_graph,
    with_choices_of_booleans,
    with_opset_of_its_operators,
    without_traces_of_the_build,
)
from stategate.export.timing import check_runs
from stategate.models.lifting.blame import blamed_operation, explained
from stategate.models.lifting.lift import Lifted
from stategate.models.operators import Operators
from stategate.models.step import (
    ChunkModel,
    StepModel,
    StepResult,
    commit,
    initial_states,
    threshold_inputs,
)

OPSET = 20  # the newest that TensorRT 10.x's parser takes

Arrays = dict[str, np.ndarray]


def trace(
    model: StepModel, sessions: int = 1, operators: Operators = Operators.PORTABLE
) -> onnx.ModelProto:
    """Trace one step of a model into ONNX.

    Args:
        model: An ``nn.Module`` that offers `StepModel`.
        sessions: Rows of every leading axis; see `batched`.
        operators: Which operators it may use.

    Returns:
        Opset 20, or 27 with that one's operators; static shapes, no control flow; inputs and
        outputs named by the model's spec.

    Raises:
        TraceError: The module is no step model, its results are not those of its spec, its rows
            are not independent, or torch.export cannot follow it.
        SpecError: Several sessions are asked of a model without a leading axis for them.
        UndeclaredStateError: Something changes that is not declared as a state.
        GraphError: The graph breaks a rule.
    """
    module = as_module(model)
    spec = spec_of(model)
    module.eval()
    example = _example(spec, model)
    watch = Watch(module)
    _check_results(spec, _run_watched(model, spec, example, "step", watch))
    if sessions > 1:
        check_rows_stand_alone(model, sessions)
        spec = batched(spec, sessions)
        example = _example(spec, model, sessions)
    with with_operators(model, operators):
        graph = _lowered(_Flat(model, spec, watch).eval(), example, _output_names(spec))
    check_graph(graph, spec, branch_free=True)
    check_runs(graph, {name: tensor.numpy() for name, tensor in example.items()})
    return graph


def trace_chunk(model: ChunkModel, operators: Operators = Operators.PORTABLE) -> onnx.ModelProto:
    """Trace the chunk of a model that has one (``chunk_steps`` above 0) into ONNX.

    Args:
        model: A model that `trace` takes.
        operators: Which operators it may use.

    Returns:
        As `trace`, with the signature of `stategate.contract.chunked`.

    Raises:
        TraceError: Its results are not those of `chunked`, or torch.export cannot follow it.
        UndeclaredStateError: Something changes that is not declared as a state.
        SpecError: Its step's signature cannot have a chunk.
        GraphError: The graph breaks a rule.
    """
    module = as_module(model)
    spec = chunked(spec_of(model), model.chunk_steps)
    module.eval()
    example = _example(spec, model)
    watch = Watch(module)
    _check_results(spec, _run_watched(model, spec, example, "chunk", watch))
    with with_operators(model, operators):
        graph = _lowered(_FlatChunk(model, spec, watch).eval(), example, _output_names(spec))
    check_graph(graph, spec, branch_free=True)
    return graph


def _lowered(flat: _Flat, example: dict[str, torch.Tensor], outputs: list[str]) -> onnx.ModelProto:
    """A module of positional tensors as ONNX."""
    with torch.no_grad(), quiet():
        try:
            program = torch.export.export(flat, tuple(example.values()), strict=False)
        except failures() as problem:  # torch.export raises many unrelated types
            raise TraceError(
                "torch.export cannot follow the step",
                found=explained(problem, lines=1),
                expected="a step without data-dependent Python branches or shape changes",
                remedy="choose with torch.where(condition, a, b), keep every shape fixed, write "
                "tensors without .data, and "
                "compute in torch alone",
            ) from problem
        mutated = sorted(
            {*program.graph_signature.buffers_to_mutate.values()}
            | {*getattr(program.graph_signature, "parameters_to_mutate", {}).values()}
        )
        if mutated:
            module = as_module(flat.model)
            own = "model.lifted." if isinstance(module, Lifted) else "model."
            raise undeclared(module, [name.removeprefix(own) for name in mutated])
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=outputs,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as problem:
            raise TraceError(
                "an operation of the step has no ONNX form",
                found=blamed_operation(problem, lambda: flat(*example.values()))
                or explained(problem.__cause__ or problem),
                expected=f"operations of ONNX opset {OPSET}",
                remedy="write the operation in simpler ones",
            ) from problem
    assert converted is not None  # with dynamo=True and no file, a program is returned
    graph = with_choices_of_booleans(without_traces_of_the_build(converted.model_proto))
    return with_opset_of_its_operators(graph)


def as_module(model: object) -> nn.Module:
    """The model as an ``nn.Module``.

    Raises:
        TraceError: It is not one, or does not offer the step protocol.
    """
    if not isinstance(model, nn.Module) or not isinstance(model, StepModel):
        raise TraceError(
            "this object cannot be exported",
            found=type(model).__name__,
            expected="an nn.Module with step_spec() and step(inputs, states)",
            remedy="see docs/tutorial/quickstart.md for ten lines that do it",
        )
    packed = [name for name, part in model.named_modules() if _is_quantised(part)]
    if packed:
        raise TraceError(
            "quantised modules of torch cannot be traced",
            found=", ".join(packed[:4]),
            expected="the module as it was before quantize_() or quantize_dynamic()",
            remedy="export it in float, with --precision int8-weights",
        )
    return model


def _is_quantised(part: nn.Module) -> bool:
    """Of torch.ao, or with weights of torchao, which are a tensor of another class."""
    weights = [type(parameter.data) for parameter in part.parameters(recurse=False)]
    kinds = [type(part), *(kind for kind in weights if kind is not torch.Tensor)]
    return any(k.__module__.startswith(("torch.ao.nn.quantized", "torchao.")) for k in kinds)


class TorchReference:
    """The float model in closed loop on its own state: what a bundle is compared with."""

    def __init__(self, model: StepModel, thresholds: Mapping[str, float]) -> None:
        self.name = f"torch {torch.__version__}"
        self._model = model
        self._spec = model.step_spec()
        self._thresholds = dict(thresholds)
        self._fixed = threshold_inputs(self._spec, self._thresholds)
        self._states = initial_states(model)

    @torch.no_grad()
    def step(self, inputs: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates, by name."""
        given = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        result = self._model.step({**given, **self._fixed}, self._states)
        self._states = commit(self._spec, self._states, result, self._thresholds)

        def arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
            return {name: tensor.numpy() for name, tensor in tensors.items()}

        return arrays(result.outputs), arrays(self._states), arrays(result.gates)


class _Flat(nn.Module):
    """The step with positional tensors, the form that torch.export names reliably."""

    def __init__(self, model: StepModel, spec: StepSpec, watch: Watch) -> None:
        super().__init__()
        self.model = model
        self._watch = watch
        self._spec = spec
        self._names = [t.name for t in spec.inputs]
        self._names += [g.threshold_input for g in spec.gates if g.threshold_input]
        dtypes = [t.dtype for t in spec.inputs] + [s.dtype for s in spec.states]
        self._is_wide = not {"float64", "int64"}.isdisjoint(dtypes)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        numbers = Float64Numbers() if self._is_wide else nullcontext()
        with numbers, self._watch.forgetting():
            return self._flat(self._result(*self._named(tensors)))

    def _result(
        self, inputs: dict[str, torch.Tensor], states: dict[str, torch.Tensor]
    ) -> StepResult:
        return self.model.step(inputs, states)

    def _named(
        self, tensors: tuple[torch.Tensor, ...]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        inputs = dict(zip(self._names, tensors, strict=False))
        carried = tensors[len(self._names) :]
        return inputs, {s.name: t for s, t in zip(self._spec.states, carried, strict=True)}

    def _flat(self, result: StepResult) -> tuple[torch.Tensor, ...]:
        return (
            *(result.outputs[t.name] for t in self._spec.outputs),
            *(result.gates[g.name] for g in self._spec.gates),
            *(result.states[s.name] for s in self._spec.states),
        )


class _FlatChunk(_Flat):
    """The chunk with positional tensors; ``valid`` is one of the inputs."""

    model: ChunkModel

    def _result(
        self, inputs: dict[str, torch.Tensor], states: dict[str, torch.Tensor]
    ) -> StepResult:
        return self.model.chunk(inputs, states, inputs.pop(VALID))


def _output_names(spec: StepSpec) -> list[str]:
    names = [t.name for t in spec.outputs] + [g.name for g in spec.gates]
    return names + [s.next_name for s in spec.states]


def _example(spec: StepSpec, model: StepModel, sessions: int = 1) -> dict[str, torch.Tensor]:
    """Example tensors in graph order: inputs, thresholds, states."""
    # Not zeros: a memory that adds its input to itself must be seen to change.
    inputs = {t.name: torch.ones(t.shape, dtype=getattr(torch, t.dtype)) for t in spec.inputs}
    return {**inputs, **threshold_inputs(spec), **initial_states(model, sessions)}


def spec_of(model: StepModel) -> StepSpec:
    """The model's own spec.

    Raises:
        TraceError: ``step_spec()`` fails or gives something else.
        SpecError: It contradicts itself.
    """
    try:
        spec: object = model.step_spec()
    except SpecError:
        raise
    except failures() as problem:  # a user's code may raise anything
        raise TraceError("step_spec() fails", found=explained(problem)) from problem
    if not isinstance(spec, StepSpec):
        raise TraceError(
            "step_spec() must give a StepSpec", found=type(spec).__name__, expected="StepSpec"
        )
    return spec


def _run_watched(
    model: StepModel,
    spec: StepSpec,
    example: dict[str, torch.Tensor],
    what: str,
    watch: Watch,
) -> object:
    """One eager step or chunk, which must remember nothing and leave its arguments alone."""
    names = {s.name for s in spec.states}
    wanted = [("output", t.name) for t in spec.outputs] + [("gate", g.name) for g in spec.gates]
    wanted += [("next state", name) for name in names]

    def once(given: Mapping[str, torch.Tensor]) -> object:
        inputs = {n: t for n, t in given.items() if n not in names}
        states = {n: t for n, t in given.items() if n in names}
        if what == "chunk":
            return cast(ChunkModel, model).chunk(inputs, states, inputs.pop(VALID))
        return model.step(inputs, states)

    def tensors(given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = once({name: tensor.clone() for name, tensor in given.items()})
        if not isinstance(result, StepResult):
            return {}
        kinds = {"output": result.outputs, "gate": result.gates, "next state": result.states}
        found = {f"{kind} {name}": kinds[kind].get(name) for kind, name in wanted}
        return {name: t for name, t in found.items() if isinstance(t, torch.Tensor)}

    given = {name: tensor.clone() for name, tensor in example.items()}
    try:
        watch.search(tensors, example, [t.name for t in spec.inputs])
        with torch.no_grad(), watch.forgetting():
            result = once(given)
    except StategateError:
        raise
    except failures() as problem:  # a user's code may raise anything
        raise TraceError(
            f"the {what} fails on its own spec",
            found=explained(problem),
            expected=f"a {what} that takes the inputs and states of step_spec(), by name",
        ) from problem
    touched = [name for name, tensor in given.items() if tensor._version]
    if touched:
        raise TraceError(
            f"the {what} changes its arguments in place",
            found=", ".join(touched),
            expected="new tensors for next states and outputs",
            remedy="write x = x * 0.5 instead of x.mul_(0.5)",
        )
    return result


def _check_results(spec: StepSpec, result: object) -> None:
    if not isinstance(result, StepResult):
        raise TraceError(
            "step() must return a StepResult",
            found=type(result).__name__,
            expected="StepResult(outputs, states, gates)",
        )
    promised = (
        ("output", spec.outputs, result.outputs),
        ("next state", spec.states, result.states),
        ("gate", spec.gates, result.gates),
    )
    for kind, specs, given in promised:
        for tensor_spec in specs:
            if tensor_spec.name not in given:
                raise TraceError(
                    f"step() does not return {kind} {tensor_spec.name!r}",
                    found=", ".join(given) or "nothing",
                    expected=", ".join(s.name for s in specs),
                )
            tensor = given[tensor_spec.name]
            if not isinstance(tensor, torch.Tensor):
                raise TraceError(
                    f"{kind} {tensor_spec.name!r} is no tensor", found=type(tensor).__name__
                )
            dtype = str(tensor.dtype).removeprefix("torch.")
            wanted = getattr(tensor_spec, "dtype", "float32")
            if tuple(tensor.shape) != tensor_spec.shape or dtype != wanted:
                raise TraceError(
                    f"{kind} {tensor_spec.name!r} is not what step_spec() says",
                    found=f"{dtype} {tuple(tensor.shape)}",
                    expected=f"{wanted} {tensor_spec.shape}",
                    remedy="a state must keep its shape and dtype for ever"
                    if kind == "next state"
                    else "correct step_spec() or the step",
                )
        extra = sorted(set(given) - {s.name for s in specs})
        if extra:
            raise TraceError(
                f"step() returns a {kind} that step_spec() does not declare", found=extra
            )
