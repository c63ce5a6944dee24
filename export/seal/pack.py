"""From a checked graph to a sealed bundle: candidate, parity check, receipt, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import onnx

from stategate.common.build_time import build_time
from stategate.contract import (
    Budget,
    Bundle,
    FileRef,
    Manifest,
    canonical_json,
    refuse_to_replace,
    sha256,
    write_bundle,
)
from stategate.contract.c_library import ABI, SOURCE_FOLDER, NativeRef
from stategate.contract.episode import Episode
from stategate.contract.manifest import SCHEMA_VERSION, CalibrationRef, GraphRef, TargetRef
from stategate.contract.receipts import InputsRef, LowerPrecision
from stategate.contract.staging import scratch_folder
from stategate.export.c.library import with_library
from stategate.export.c.package import package_of
from stategate.export.candidate import Candidate, Reference, Role
from stategate.export.passes.graph import domains_of, opset_of
from stategate.export.seal.prologue import prologue_error, with_beginning
from stategate.export.seal.resident import added_memory
from stategate.export.seal.verify import STRICT, Limits, verify
from stategate.runtime.trust.code import accept_own, code_digest

GOLDEN_PATH = "golden.npz"


def seal(
    out: Path,
    candidate: Candidate,
    reference: Reference,
    episode: Episode,
    *,
    target: TargetRef | None = None,
    budget: Budget | None = None,
    limits: Limits = STRICT,
    report: Callable[[int], None] = lambda _: None,
    inputs: InputsRef = InputsRef(),  # noqa: B008  (frozen)
    measure: bool = False,
) -> Bundle:
    """Verify a candidate and write it as a bundle; nothing is written if it fails."""
    refuse_to_replace(out)
    if candidate.prologue is not None:
        episode = with_beginning(candidate.prologue, episode)
    episode.check(candidate.spec, starts=True)
    created = build_time()
    with scratch_folder() as scratch:
        manifest, files = _assemble(candidate, created, target, budget or Budget())
        unsealed = write_bundle(Path(scratch) / "candidate", manifest, files)
        receipt, golden = verify(unsealed.path, reference, episode, limits, report, inputs)
        if candidate.prologue is not None:
            error = prologue_error(unsealed.path, candidate.prologue, episode, limits)
            receipt = msgspec.structs.replace(receipt, max_prologue_error=error)
        files[GOLDEN_PATH] = golden.to_bytes()
        sealed = msgspec.structs.replace(
            manifest,
            files=(*manifest.files, FileRef(GOLDEN_PATH, sha256(files[GOLDEN_PATH]))),
            golden=GOLDEN_PATH,
            verification=receipt,
        )
        if candidate.c_source:
            trial = Path(scratch) / "sealed"
            sealed, files = with_library(trial, sealed, files, required=candidate.needs_native)
        if measure:
            whole = write_bundle(Path(scratch) / "measured", sealed, files)
            sealed = msgspec.structs.replace(sealed, resident=added_memory(whole))
    written = write_bundle(out, sealed, files)
    accept_own(code_digest(sealed), sealed.model.name)
    return written


def draft(path: Path, candidate: Candidate) -> Bundle:
    """An unsealed bundle: to be stepped and thrown away."""
    return write_bundle(path, *_assemble(candidate, build_time(), None, Budget()))


def _assemble(
    candidate: Candidate,
    created: str,
    target: TargetRef | None,
    budget: Budget,
) -> tuple[Manifest, dict[str, bytes]]:
    extra: dict[str, bytes] = dict(candidate.attached)
    states = []
    for state in candidate.spec.states:
        if state.name in candidate.initial:
            path = f"initial/{len(extra) - len(candidate.attached)}.bin"
            array = candidate.initial[state.name]
            extra[path] = array.astype(array.dtype.newbyteorder("<")).tobytes()
            state = msgspec.structs.replace(state, init_file=path)
        states.append(state)
    calibration = None
    if candidate.calibration is not None:
        raw = canonical_json(candidate.calibration)
        extra["calibration.json"] = raw
        rules = "; ".join(f"{g.gate}: {g.rule}" for g in candidate.calibration.gates)
        calibration = CalibrationRef(sha256(raw), rules)
    lower = None
    if candidate.float_sizes is not None:
        graph_bytes, state_bytes = candidate.float_sizes
        lower = LowerPrecision(graph_bytes, len(candidate.graph), state_bytes)
    native = None
    if candidate.c_source:
        from stategate.export.c import generator  # a second to import, for whoever wants C

        package = package_of(candidate.model.name, candidate.c_source)
        files = {**candidate.c_source, **package}
        sources = {f"{SOURCE_FOLDER}/{name}": raw for name, raw in files.items()}
        native = NativeRef(
            abi=ABI,
            sources=tuple(sorted(sources)),
            generator=generator.name(),
            inexact=candidate.c_inexact,
        )
        extra |= sources
    if not candidate.plan.is_float:
        extra["precision.json"] = canonical_json(candidate.plan)
    forms: dict[Role, bytes] = {"step": candidate.graph, **candidate.parts}
    if candidate.chunk is not None:
        forms["chunk"] = candidate.chunk
    if candidate.prologue is not None:
        forms["prologue"] = candidate.prologue.graph
    graphs = tuple(_graph_ref(role, raw, candidate) for role, raw in forms.items())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created=created,
        producer={name: _version(name) for name in ("stategate", *candidate.made_with)},
        model=candidate.model,
        inputs=candidate.spec.inputs,
        outputs=candidate.spec.outputs,
        states=tuple(states),
        gates=candidate.spec.gates,
        constants=candidate.spec.constants,
        graphs=graphs,
        way=candidate.way,
        files=tuple(FileRef(path, sha256(data)) for path, data in sorted(extra.items())),
        budget=budget,
        target=target,
        calibration=calibration,
        metadata=candidate.metadata,
        observation=candidate.observation,
        prologue=candidate.prologue.signature if candidate.prologue else None,
        sessions=candidate.sessions,
        lower_precision=lower,
        native=native,
        no_native=candidate.no_native,
        backbone=candidate.backbone,
    )
    files = {graph.file.path: forms[graph.role] for graph in graphs}
    return manifest, files | extra


def _graph_ref(role: Role, raw: bytes, candidate: Candidate) -> GraphRef:
    model = onnx.load_model_from_string(raw)
    return GraphRef(
        role,
        "onnx",
        "float32" if role == "prologue" else candidate.plan.label,
        FileRef(f"graphs/{role}.onnx", sha256(raw)),
        opset_of(model),
        domains_of(model),
        candidate.chunk_steps if role == "chunk" else 1,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
