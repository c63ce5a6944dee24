"""Replaying a bundle's golden episode: does this machine do what the exporter saw."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from stategate.contract import Bundle, Episode, Manifest
from stategate.contract.chain import START, chained
from stategate.contract.episode import not_finite
from stategate.contract.errors import EpisodeError, ParityError, RuntimeFault
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.check.full_pool import Stepper, open_stepper
from stategate.runtime.check.gaps import Gaps, live, recorded, side_by_side
from stategate.runtime.check.one_step import OneStep, one_step
from stategate.runtime.engines.engine import Engine, EngineChoice, open_engine
from stategate.runtime.session import Session
from stategate.runtime.trust.policy import Trust

TOLERANCE = 1e-4  # some 800 roundings of float32
_FAILS = "copy the bundle again, or try another --engine"


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay."""

    steps: int  # steps that were compared
    max_output_error: float  # largest difference of any output element; see `Gaps`
    max_state_error: float  # the same of the states after the last step
    gate_flips: int  # gate decisions that differed
    tolerance: float  # what the errors are held against
    # between chunk and step, see `chunk_gap`; None without a chunk graph
    max_chunk_error: float | None = None
    # as `max_output_error`, in one graph where the bundle runs in two; None where it does not
    max_fused_error: float | None = None
    # of the states that the prologue fills; None without one
    max_prologue_error: float | None = None
    # what came of each step alone, where states in fewer bits took the run on its own states beyond
    # the tolerance: it then decides in place of that run
    one_step: OneStep | None = None
    # of outputs, gates and states of all steps, see `NativeRef.golden_digest`; empty where another
    # engine than the native one stepped it
    digest: str = ""
    promised_digest: str = ""  # what the manifest says of it; empty where it says nothing
    # whether the bits decide alone: the native engine has a digest to give, and nobody asked for a
    # tolerance. What errors such bits have was judged when it was promised
    is_exact: bool = False
    usual_output_error: float = 0.0  # half of the steps have no larger one

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance and no gate flipped.

        Where the native engine stepped it and a digest is promised, every bit must be as promised.
        """
        if self.digest and self.promised_digest and self.digest != self.promised_digest:
            return False
        errors = (self.max_chunk_error, self.max_fused_error, self.max_prologue_error)
        others = [error for error in errors if error is not None]
        # Other graphs than the step have no digest. Written so that NaN fails.
        if not all(error <= self.tolerance for error in others):
            return False
        if self.is_exact:
            return True
        if self.one_step is not None:
            return self.one_step.passes(self.tolerance)
        own = (self.max_output_error, self.max_state_error)
        return all(error <= self.tolerance for error in own) and self.gate_flips == 0

    @property
    def summary(self) -> str:
        """What was found, in words."""
        own_run = (
            f"output error {self.max_output_error:.3g}, state error {self.max_state_error:.3g}, "
            f"{self.gate_flips} gate flips"
        )
        if self.digest and self.promised_digest:
            same = self.digest == self.promised_digest
            promise = "every bit as" if same else f"not the {self.promised_digest} that is"
            own_run += f", digest {self.digest}, {promise} promised"
        if self.one_step is None:
            return own_run
        return f"{self.one_step.summary}; on its own: {own_run}"


def stepped(
    session: Stepper, inputs: dict[str, Array], t: int, reference: str, remedy: str
) -> Mapping[str, Array]:
    """One step of a check, where the reference gave finite numbers."""
    try:
        outputs = session.step(**inputs)
        problem = ", ".join(f"NaN or Inf in output {name!r}" for name in not_finite(outputs))
    except RuntimeFault as fault:
        problem = fault.what
    if problem:
        raise ParityError(
            f"the bundle fails in step {t}, where {reference} does not",
            found=problem,
            expected="finite numbers",
            remedy=remedy,
        )
    return outputs


def chunk_gap(path: str | Path, golden: Episode) -> float | None:
    """Take a golden episode in by the chunk and by the step, and compare all that they leave.

    Two histories: one of whole chunks, and one that ends within a chunk.

    Returns:
        The largest difference of outputs and states, see `Gaps`; infinity where the ledgers differ.
        None where the bundle has no chunk graph.
    """
    graph = Bundle.open(path).manifest.chunk_graph
    if graph is None:
        return None
    if golden.steps <= graph.steps:
        raise EpisodeError(
            "the episode is too short to try the chunk graph",
            found=f"{golden.steps} steps",
            expected=f"more than the {graph.steps} of a chunk",
        )
    whole = golden.steps // graph.steps * graph.steps
    ragged = golden.steps if golden.steps > whole else whole - 1
    return max(_history_gap(path, golden, steps) for steps in (whole, ragged))


def _history_gap(path: str | Path, golden: Episode, steps: int) -> float:
    inputs = {name: array[:steps] for name, array in golden.inputs.items()}
    history = Episode(inputs, start=golden.start, prologue=golden.prologue)
    with Session.open(path, health="off") as by_chunk, Session.open(path, health="off") as by_step:
        history.begin(by_chunk, [state.name for state in by_chunk.manifest.states])
        outputs = by_chunk.prefill(**history.inputs)
        ended = {state.name: by_chunk.state(state.name) for state in by_chunk.manifest.states}
        answers = recorded(replace(history, outputs=outputs, states=ended))
        # Gates are not compared: a session shows those of the last step of a chunk only.
        steps_taken = (answer._replace(gates={}) for answer in live(by_step, history))
        replayed = side_by_side(by_step.manifest, answers, steps_taken)
        if by_chunk.ledger != by_step.ledger:
            return float("inf")
    return max(replayed.outputs.worst(), replayed.states.worst())


def fused_gap(path: str | Path, golden: Episode) -> float | None:
    """Step a bundle that runs in two graphs through its golden episode in one.

    Returns:
        The largest difference of outputs, see `Gaps`; None where the bundle runs in one anyway.
    """
    bundle = Bundle.open(path)
    if bundle.manifest.graph_of("read") is None:
        return None
    with Session.open(path, health="off") as session:

        def fused(engine: Engine, buffers: Buffers) -> Engine:
            engine.close()
            return open_engine(bundle, buffers, bundle.manifest.step_graph, "onnxruntime")

        session.replace_engine(fused)
        return side_by_side(
            bundle.manifest, live(session, golden), recorded(golden)
        ).outputs.worst()


def prologue_gap(path: str | Path, golden: Episode) -> float | None:
    """Begin the golden episode with the bundle's own prologue.

    Returns:
        The largest difference of the states that it fills; None where there is no prologue.
    """
    if not golden.prologue:
        return None
    gaps = Gaps()
    with Session.open(path, health="off") as session:
        session.begin(**golden.prologue)
        gaps.add({name: session.state(name) for name in golden.start}, golden.start)
    return gaps.worst()


def _chained(chain: int, session: Stepper, outputs: Mapping[str, Array]) -> int:
    """The chain of hashes with all that a step gave, in the order of the manifest."""
    manifest = session.manifest
    for output in manifest.outputs:
        chain = chained(chain, outputs[output.name])
    for gate in manifest.gates:
        chain = chained(chain, session.gates[gate.name])
    for state in manifest.states:
        chain = chained(chain, session.state(state.name))
    return chain


def tolerance_of(manifest: Manifest) -> float:
    """How far a bundle's engines may be from its golden answers.

    Those of a bundle in lower precision are its own; its receipt is about the float model.
    """
    receipt = manifest.verification
    return (receipt.tolerance if receipt and receipt.max_flip_rate is None else None) or TOLERANCE


def replay(
    path: str | Path,
    tolerance: float | None = None,
    engine: EngineChoice = "auto",
    trust: Trust | None = None,
) -> Replay | None:
    """Step a bundle through its golden episode on this machine.

    Args:
        path: Its folder.
        tolerance: Largest error of outputs and states; see `stategate.verify`.
        engine: As in `Session.open`.
        trust: As in `Session.open`.

    Returns:
        The comparison, or None where the bundle carries no golden episode.
    """
    bundle = Bundle.open(path)
    golden = bundle.golden()
    if golden is None:
        return None
    is_asked = tolerance is not None
    if tolerance is None:
        tolerance = tolerance_of(bundle.manifest)
    answers = {**golden.outputs, **golden.gates, **golden.states}
    if holes := not_finite(answers):
        raise ParityError(
            "the golden episode promises NaN or Inf, which a session takes for a fault",
            found=f"in {', '.join(holes)}",
            expected="finite answers",
            remedy="export the model again, on inputs that it is made for",
        )
    native, chain = bundle.manifest.native, START
    promised = native.golden_digest if native is not None else ""
    with closing(open_stepper(path, engine, trust)) as session:
        is_native = native is not None and session.engine_name.startswith("native ")

        def step(t: int, inputs: dict[str, Array]) -> Mapping[str, Array]:
            nonlocal chain
            outputs = stepped(session, inputs, t, "the model that it was made from", _FAILS)
            if is_native:
                chain = _chained(chain, session, outputs)
            return outputs

        run = side_by_side(bundle.manifest, live(session, golden, step), recorded(golden))
    replayed = Replay(
        golden.steps,
        run.outputs.worst(),
        run.states.worst(),
        run.flips,
        tolerance,
        digest=f"{chain:016x}" if is_native else "",
        promised_digest=promised,
        is_exact=is_native and bool(promised) and not is_asked,
        usual_output_error=run.outputs.usual(),
    )
    if golden.trail and not replayed.passed:
        replayed = replace(replayed, one_step=one_step(bundle, golden, engine))
    # No other graph is used then, and onnxruntime may not be there.
    if engine in ("native", "tensorrt"):
        return replayed
    return replace(
        replayed,
        max_chunk_error=chunk_gap(path, golden),
        max_fused_error=fused_gap(path, golden),
        max_prologue_error=prologue_gap(path, golden),
    )
