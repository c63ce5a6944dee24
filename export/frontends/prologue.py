"""A prologue of an ONNX file: the encoder that gives a decoder its first states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError, SpecError
from stategate.contract.failures import failures, first_line
from stategate.contract.prologue import Prologue
from stategate.export.candidate import Candidate, PrologueGraph
from stategate.export.frontends.declared import Request, pinned_inputs
from stategate.export.frontends.untrusted import load_graph, run_within_limits, unoptimised

PREFIX = "prologue."
"""Before names of axes and inputs that are the prologue's: ``--shape prologue.image=1,3,8,8``."""


def split_request(request: Request) -> tuple[Request, Request]:
    """What is said of the file, and what is said of its prologue."""
    dims, shapes = dict(request.dims), dict(request.shapes)
    own_dims = {n.removeprefix(PREFIX): dims.pop(n) for n in list(dims) if n.startswith(PREFIX)}
    own = {n.removeprefix(PREFIX): shapes.pop(n) for n in list(shapes) if n.startswith(PREFIX)}
    return replace(request, dims=dims, shapes=shapes), Request(own_dims, own, {}, {})


def adopted_prologue(
    path: Path, outputs: Mapping[str, str], request: Request, spec: StepSpec
) -> PrologueGraph:
    """Pin what is open in the file, and pair its outputs with states."""
    raw, model = load_graph(path)
    inputs = tuple(pinned_inputs(model, request).values())
    session = unoptimised(raw)
    offered = [node.name for node in session.get_outputs()]
    states = {state.name: state for state in spec.states}
    pairs = dict(outputs) or {name: name for name in states if name in offered}
    unknown = sorted(set(pairs.values()) - set(offered))
    if unknown or not pairs:
        raise SpecError(
            "the prologue has no such output" if unknown else "nothing of the prologue is a state",
            found=", ".join(unknown) or ", ".join(offered),
            expected=", ".join(offered if unknown else states),
            remedy=f"--prologue-output {next(iter(pairs or states))}={offered[0]}",
        )
    signature = Prologue(inputs, pairs)
    signature.check(spec)

    def reference(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = run_within_limits(session, list(pairs.values()), dict(feed))
        return dict(zip(pairs, arrays, strict=True))

    check_first_states(reference, signature, spec, path.name)
    return PrologueGraph(signature, raw, reference)


def check_first_states(
    reference: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    signature: Prologue,
    spec: StepSpec,
    name: str,
) -> None:
    """Run a prologue once, and hold what it gives against the states."""
    feed = {t.name: np.zeros(t.shape, t.dtype) for t in signature.inputs}
    try:
        first = reference(feed)
    except GraphError:
        raise
    except failures() as problem:  # ONNX Runtime and a user's code raise anything
        raise GraphError(
            f"the prologue {name} does not run",
            found=first_line(problem),
            expected=", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in signature.inputs),
        ) from problem
    for state in spec.states:
        array = first.get(state.name)
        if array is not None and (array.shape, str(array.dtype)) != (state.shape, state.dtype):
            raise SpecError(
                f"the prologue fills state {state.name!r} with another form",
                found=f"{array.dtype} {list(array.shape)}",
                expected=f"{state.dtype} {list(state.shape)}",
            )


def with_prologue(candidate: Candidate, prologue: PrologueGraph | None) -> Candidate:
    """The candidate with what begins its episodes."""
    if prologue is None:
        return candidate
    if candidate.sessions > 1:
        raise SpecError(
            "a prologue begins the episode of one session",
            found=f"{candidate.sessions} sessions",
            remedy="leave --sessions out: Pool.open takes such a bundle for a pool of one row",
        )
    lacking = sorted(set(prologue.signature.outputs) - {s.name for s in candidate.spec.states})
    changed = candidate.float_sizes is not None and bool(lacking)
    if changed:
        raise SpecError(
            "a prologue fills states as the model computes with them",
            found=f"{', '.join(lacking)} stored in fewer bits",
            remedy="leave --state-storage out",
        )
    return replace(candidate, prologue=prologue)
