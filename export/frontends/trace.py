"""From a torch module to one branch-free ONNX step, or a sentence that says why not."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import cast

import onnx
import torch
from torch import nn

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.chunks import VALID, chunked
from stategate.contract.errors import SpecError, StategateError, TraceError
from stategate.contract.failures import failures
from stategate.contract.sessions import batched
from stategate.export.frontends.padded import check_padding
from stategate.export.frontends.places import Float64Numbers, TensorsAsPlaces
from stategate.export.frontends.references import check_rows
from stategate.export.frontends.unrolled import in_simpler_operations
from stategate.export.memory.anew import Begins
from stategate.export.memory.watch import Watch, undeclared
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
    Tensors,
    initial_states,
    threshold_inputs,
)

OPSET = 20  # the newest that TensorRT 10.x's parser takes


def trace(
    model: StepModel, sessions: int = 1, operators: Operators = Operators.PORTABLE
) -> onnx.ModelProto:
    """Trace one step of a model into ONNX.

    Returns:
        Opset 20, or 27 with that one's operators; static shapes, no control flow; inputs and
        outputs named by the model's spec.
    """
    step = _Step(model, spec_of(model))
    step.check()
    if sessions > 1:
        check_rows(model, sessions)
        step.spec = batched(step.spec, sessions)
    graph = step.traced(operators, sessions)
    check_padding(graph, step.spec)
    check_runs(graph, {name: t.numpy() for name, t in step.example(sessions).items()})
    return graph


def trace_chunk(model: ChunkModel, operators: Operators = Operators.PORTABLE) -> onnx.ModelProto:
    """Trace the chunk of a model that has one (``chunk_steps`` above 0) into ONNX.

    The graph and the errors are those of `trace`, the signature that of `chunked`.
    """
    chunk = _Chunk(model, chunked(spec_of(model), model.chunk_steps))
    chunk.check()
    return chunk.traced(operators)


class _Step(nn.Module):
    """The step with positional tensors in and out, in graph order, as torch.export wants it."""

    kind = "step"

    def __init__(self, model: StepModel, spec: StepSpec) -> None:
        super().__init__()
        self.model, self.spec = as_module(model), spec
        self._watch = Watch(self.model)
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        spec = self.spec
        dtypes = [t.dtype for t in spec.inputs] + [s.dtype for s in spec.states]
        is_wide = not {"float64", "int64"}.isdisjoint(dtypes)
        wide = Float64Numbers() if is_wide else nullcontext()
        with wide, TensorsAsPlaces(), self._watch.forgetting():
            result = self.run(dict(zip(self._names(), tensors, strict=True)))
        return (
            *(result.outputs[t.name] for t in spec.outputs),
            *(result.gates[g.name] for g in spec.gates),
            *(result.states[s.name] for s in spec.states),
        )

    def run(self, tensors: Mapping[str, torch.Tensor]) -> StepResult:
        """One call of the user's code, with its inputs and states by name."""
        states = {s.name: tensors[s.name] for s in self.spec.states}
        inputs = {name: t for name, t in tensors.items() if name not in states}
        return self.call(inputs, states)

    def call(self, inputs: Tensors, states: Tensors) -> StepResult:
        return cast(StepModel, self.model).step(inputs, states)

    def _names(self) -> list[str]:
        thresholds = [g.threshold_input for g in self.spec.gates if g.threshold_input]
        parts = [t.name for t in self.spec.inputs], thresholds, [s.name for s in self.spec.states]
        return [name for part in parts for name in part]

    def example(self, sessions: int = 1) -> dict[str, torch.Tensor]:
        """Example tensors in graph order: inputs, thresholds, states."""
        # Not zeros: a memory that adds its input to itself must be seen to change.
        ones = {
            t.name: torch.ones(t.shape, dtype=getattr(torch, t.dtype)) for t in self.spec.inputs
        }
        start = initial_states(cast(StepModel, self.model), sessions)
        return {**ones, **threshold_inputs(self.spec), **start}

    def check(self) -> None:
        """Run the user's code: it must remember nothing, change no argument, and keep its spec."""
        example = self.example()
        tensors = {name: tensor.clone() for name, tensor in example.items()}
        try:
            self._watch.search(self._labelled, example, [t.name for t in self.spec.inputs])
            begins = Begins(self.model)
            with torch.no_grad(), self._watch.forgetting(), begins.watching():
                result = self.run(tensors)
            begins.check()
        except StategateError:
            raise
        except failures() as problem:  # a user's code may raise anything
            raise TraceError(
                f"the {self.kind} fails on its own spec",
                found=explained(problem),
                expected=f"a {self.kind} that takes the inputs and states of step_spec(), by name",
            ) from problem
        changed = [name for name, tensor in tensors.items() if tensor._version]
        if changed:
            raise TraceError(
                f"the {self.kind} changes its arguments in place",
                found=", ".join(changed),
                expected="new tensors for next states and outputs",
                remedy="write x = x * 0.5 instead of x.mul_(0.5)",
            )
        _check_results(self.spec, result)

    def _labelled(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What one call on copies gives, by kind and name; nothing where it is no result."""
        result: object = self.run({name: tensor.clone() for name, tensor in tensors.items()})
        if not isinstance(result, StepResult):
            return {}  # `_check_results` refuses that later, with a reason
        return {
            f"{kind} {part.name}": results[part.name]
            for kind, parts, results in _results(self.spec, result)
            for part in parts
            if isinstance(results.get(part.name), torch.Tensor)
        }

    def traced(self, operators: Operators, sessions: int = 1) -> onnx.ModelProto:
        """The graph, of the signature ``spec`` and without control flow."""
        example = self.example(sessions)
        with _with_operators(cast(StepModel, self.model), operators), torch.no_grad(), quiet():
            graph = self._converted(self._exported(example), example)
        check_graph(graph, self.spec, branch_free=True)
        return graph

    def _exported(self, example: dict[str, torch.Tensor]) -> torch.export.ExportedProgram:
        try:
            program = torch.export.export(self, tuple(example.values()), strict=False)
        except failures() as problem:  # torch.export raises many unrelated types
            message = explained(problem, lines=1)
            # A count that becomes a Python number may be a place, a length or a condition.
            is_number = re.search(r"data-dependent[^`]*`[^`]*(\bint\(|\.item\(|range\()", message)
            raise TraceError(
                "torch.export cannot follow the step",
                found=message,
                expected="a step without data-dependent Python branches or shape changes",
                remedy="use the tensor itself as a place, ring[:, pointer] and not "
                "ring[:, int(pointer)], and torch.where(condition, a, b) for a branch"
                if is_number
                else "choose with torch.where(condition, a, b), keep every shape fixed, write "
                "tensors without .data, and compute in torch alone",
            ) from problem
        signature = program.graph_signature
        # The watch looks at values; torch.export sees writes that leave them as they were.
        mutated = {
            *signature.buffers_to_mutate.values(),
            *getattr(signature, "parameters_to_mutate", {}).values(),
        }
        if mutated:
            prefix = "model.lifted." if isinstance(self.model, Lifted) else "model."
            raise undeclared(self.model, [name.removeprefix(prefix) for name in sorted(mutated)])
        return program

    def _converted(
        self, program: torch.export.ExportedProgram, example: dict[str, torch.Tensor]
    ) -> onnx.ModelProto:
        spec = self.spec
        names = [t.name for t in spec.outputs] + [g.name for g in spec.gates]
        names += [s.next_name for s in spec.states]
        try:
            converted = as_onnx(in_simpler_operations(program), list(example), names)
        except torch.onnx.errors.OnnxExporterError as problem:
            raise TraceError(
                "an operation of the step has no ONNX form",
                found=blamed_operation(problem, lambda: self(*example.values()))
                or explained(problem.__cause__ or problem),
                expected=f"operations of ONNX opset {OPSET}",
                remedy="write the operation in simpler ones; of linear algebra solve, inv, "
                "cholesky and solve_triangular of small matrices are taken"
                if "linalg" in str(problem)
                else "write the operation in simpler ones",
            ) from problem
        graph = with_choices_of_booleans(without_traces_of_the_build(converted))
        return with_opset_of_its_operators(graph)


class _Chunk(_Step):
    """The chunk in the same form; ``valid`` is one of its inputs."""

    kind = "chunk"

    def call(self, inputs: Tensors, states: Tensors) -> StepResult:
        valid = inputs[VALID]
        others = {name: tensor for name, tensor in inputs.items() if name != VALID}
        return cast(ChunkModel, self.model).chunk(others, states, valid)


def as_onnx(
    program: torch.export.ExportedProgram | nn.Module,
    inputs: list[str],
    outputs: list[str],
    example: tuple[torch.Tensor, ...] = (),
) -> onnx.ModelProto:
    """A program, or a module with an example of its inputs, as torch's exporter writes it."""
    converted = torch.onnx.export(
        program,
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        verbose=False,
    )
    assert converted is not None  # with dynamo=True and no file, a program is returned
    return converted.model_proto


def as_module(model: object) -> nn.Module:
    """The model as an ``nn.Module``; an error where it is none, is no step, or is quantised."""
    if not isinstance(model, nn.Module) or not isinstance(model, StepModel):
        raise TraceError(
            "this object cannot be exported",
            found=type(model).__name__,
            expected="an nn.Module with step_spec() and step(inputs, states)",
            remedy="see docs/tutorial/index.md for ten lines that do it",
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


def spec_of(model: StepModel) -> StepSpec:
    """The model's own spec; an error where ``step_spec()`` fails or gives something else."""
    as_module(model)  # an object without a step has an error of its own
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


def _results(
    spec: StepSpec, result: StepResult
) -> tuple[tuple[str, Sequence[TensorSpec | GateSpec | StateSpec], Tensors], ...]:
    return (
        ("output", spec.outputs, result.outputs),
        ("gate", spec.gates, result.gates),
        ("next state", spec.states, result.states),
    )


def _check_results(spec: StepSpec, result: object) -> None:
    if not isinstance(result, StepResult):
        raise TraceError(
            "step() must return a StepResult",
            found=type(result).__name__,
            expected="StepResult(outputs, states, gates)",
        )
    for kind, parts, results in _results(spec, result):
        names = [part.name for part in parts]
        for part in parts:
            if part.name not in results:
                raise TraceError(
                    f"step() does not return {kind} {part.name!r}",
                    found=", ".join(results) or "nothing",
                    expected=", ".join(names),
                )
            tensor: object = results[part.name]
            if not isinstance(tensor, torch.Tensor):
                raise TraceError(f"{kind} {part.name!r} is no tensor", found=type(tensor).__name__)
            dtype = str(tensor.dtype).removeprefix("torch.")
            promised = getattr(part, "dtype", "float32")  # gates are always float32
            shape = part.next_value.shape if isinstance(part, StateSpec) else part.shape
            if tuple(tensor.shape) != shape or dtype != promised:
                raise TraceError(
                    f"{kind} {part.name!r} is not what step_spec() says",
                    found=f"{dtype} {tuple(tensor.shape)}",
                    expected=f"{promised} {shape}",
                    remedy="a state must keep its shape and dtype for ever"
                    if kind == "next state"
                    else "correct step_spec() or the step",
                )
        extra = sorted(set(results) - set(names))
        if extra:
            raise TraceError(
                f"step() returns a {kind} that step_spec() does not declare", found=extra
            )


@contextmanager
def _with_operators(model: StepModel, operators: Operators) -> Iterator[None]:
    """Have the model traced with other operators than the portable ones."""
    if operators is Operators.PORTABLE:
        yield
        return
    if not isinstance(getattr(model, "operators", None), Operators):
        raise TraceError(
            "the model has no form in native operators",
            found=f"{type(model).__name__}, --operators {operators.value}",
            expected="a model of the delta family",
            remedy="export it with --operators portable",
        )
    model.operators = operators  # type: ignore[attr-defined]
    try:
        yield
    finally:
        model.operators = Operators.PORTABLE  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """Hide torch's chatter: deprecations inside of it, and graphs that it prints to stderr."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
