"""The manifest: what a bundle promises, strict on the way in, canonical on the way out.

Unknown fields and unknown schema versions are refused by name, so that an old runtime never runs a
bundle that means more than it understands. The same manifest always gives the same bytes.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from stategate.contract.backbone import BackboneRef
from stategate.contract.budget import Budget
from stategate.contract.c_library import NativeRef
from stategate.contract.chunks import chunked
from stategate.contract.errors import ManifestError, SpecError
from stategate.contract.health import HealthEnvelope
from stategate.contract.migration import Migration
from stategate.contract.observation import ObservationContract
from stategate.contract.prologue import Prologue
from stategate.contract.reading import decode_json, printable, text_with_controls
from stategate.contract.receipts import LowerPrecision, Verification
from stategate.contract.sessions import check_rows
from stategate.contract.specs import (
    ConstantSpec,
    GateSpec,
    Record,
    StateSpec,
    StepSpec,
    TensorSpec,
)
from stategate.contract.split import Way, check_payload

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # what version 2 added has a default
Standing = Literal["candidate", "sealed", "refused"]
FREE_TEXTS = ("metadata",)  # of an adopted file, in any form: whoever shows it prints it escaped
_SHA256 = re.compile(r"[0-9a-f]{64}")


def checked_path(path: str) -> str:
    """A relative POSIX path that stays inside its folder."""
    parts = PurePosixPath(path).parts
    escapes = not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0]
    if escapes or "\0" in path or max(map(len, parts)) > 200 or len(path) > 1000:
        raise SpecError(
            "a path in the manifest leaves the bundle's folder",
            found=path,
            expected="a relative path with forward slashes and without '..'",
            remedy="do not use this bundle; it was not written by stategate",
        )
    return path


class FileRef(Record, frozen=True):
    """A file of the bundle and its digest."""

    path: str
    sha256: str

    def __post_init__(self) -> None:
        """Check the path and the digest's form."""
        checked_path(self.path)
        if not _SHA256.fullmatch(self.sha256):
            raise SpecError("a digest is 64 lower-case hex digits", found=self.sha256)


class GraphRef(Record, frozen=True):
    """A graph or engine: what it computes, in which form, in which file.

    Attributes:
        role: ``step`` computes outputs, gates and next states in one go; ``chunk`` does so for
            several steps at once, see `chunks.chunked`; ``read`` and ``write`` are
            parts of the step, see `split.Way`; ``prologue`` gives first states.
        precision: ``float32``, or the name of the plan by which it was made smaller.
        opset: ONNX opset of the default domain.
        domains: Other operator domains that it needs, such as ``com.microsoft``.
        steps: Steps that it takes at once.
    """

    role: Literal["step", "chunk", "read", "write", "prologue"]
    format: Literal["onnx"]
    precision: str
    file: FileRef
    opset: int
    domains: tuple[str, ...] = ()
    steps: int = 1

    def __post_init__(self) -> None:
        """Check that the number of steps is that of the role."""
        if (self.role == "chunk") != (self.steps > 1) or self.steps < 1:
            raise SpecError(
                f"a graph of role {self.role!r} cannot take so many steps at once",
                found=self.steps,
                expected="more than 1 for a chunk, 1 for any other",
            )


class ModelRef(Record, frozen=True):
    """Where the model comes from.

    Attributes:
        family: Kind of memory: that of a zoo entry, ``custom``, or ``adopted``.
        source: Zoo name, or file and factory.
        sha256: Digest of its weights, or of the adopted file.
        kv_bytes_per_step: What a key-value cache of the same width would grow by in each step;
            None where no such cache is replaced.
    """

    name: str
    family: str
    source: str
    sha256: str
    kv_bytes_per_step: int | None = None


class TargetRef(Record, frozen=True):
    """The device that the bundle was made for.

    Attributes:
        isa: Instruction set that its CPU has, as a compiler's ``-march``; empty for the machine
            that made the bundle.
    """

    name: str
    machine: str
    isa: str = ""


class CalibrationRef(Record, frozen=True):
    """The calibration record that set the thresholds, by digest."""

    sha256: str
    summary: str


class DriftReceipt(Record, frozen=True):
    """Receipt of the drift test of a candidate in lower precision.

    Attributes:
        report: The whole report, a file of the bundle.
        reference: Digest of the float bundle that it was stepped beside.
        steps: Of both, over all held-out episodes.
        findings: Limits that were broken, one sentence each.
        accepted: Who took it all the same, and why; None where no limit was broken.
    """

    report: FileRef
    reference: str
    steps: int
    findings: tuple[str, ...] = ()
    accepted: str | None = None

    def __post_init__(self) -> None:
        """Refuse a receipt that does not say who was overruled, or overrules nothing."""
        if bool(self.findings) != bool(self.accepted):
            raise SpecError(
                "a drift receipt says who accepts broken limits, where there are any",
                found=f"{len(self.findings)} findings, accepted by {self.accepted or 'nobody'}",
            )


class Manifest(Record, frozen=True, kw_only=True):
    """Everything that a runtime needs to know about a bundle.

    Attributes:
        schema_version: Version of the schema that it was written in.
        created: Build time in UTC, ISO 8601; from SOURCE_DATE_EPOCH where that is set.
        producer: Versions of the libraries that made it.
        model: Where the model comes from.
        inputs: What a caller gives each step.
        outputs: What a step gives back.
        states: What the runtime carries.
        gates: What decides whether it is written.
        constants: Inputs that the runtime fills once.
        graphs: The same step in one or more forms.
        way: Which of them a session runs, and why; None is the step.
        files: Every other file of the bundle: initial states, the golden episode.
        golden: Path of the golden episode among ``files``, or None.
        budget: Limits.
        target: The device it is for, or None for any.
        calibration: Record that set the thresholds, or None.
        verification: Parity receipt; None in a draft that was never checked.
        drift: Drift receipt of a bundle in lower precision; None in a candidate.
        metadata: Facts that travelled in an adopted file, as text.
        sessions: How many independent sessions one step serves: rows of the leading axis of every
            input, output, state and gate. More than one makes it a bundle for a pool.
        native: The step as C source and as a library made of it; None where there is neither.
        lower_precision: Sizes before and after; None in float32, and in bundles before version 2.
        no_native: Why a native engine that was asked for is missing, or has no library.
        observation: What its inputs and outputs mean, as far as somebody said it; None where nobody
            did.
        backbone: What gives the features that the step takes; None where they are no features, or
            it runs elsewhere.
        prologue: What begins an episode; None where nothing but the initial states does.
        resident: By engine, bytes that opening and stepping it added to a process where it was
            made: the first time, and a second time in one process. Empty where not measured.
        release: Number that its author gives it, for installations, which refuse to go back to a
            lower one; 0 where nobody gave one.
        migrations: How memories of other bundles become its own.
        health: What it met when it was calibrated; None where nobody learned it.
    """

    schema_version: int
    created: str
    producer: dict[str, str]
    model: ModelRef
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    gates: tuple[GateSpec, ...]
    constants: tuple[ConstantSpec, ...] = ()
    graphs: tuple[GraphRef, ...]
    way: Way | None = None
    files: tuple[FileRef, ...] = ()
    golden: str | None = None
    budget: Budget = Budget()
    target: TargetRef | None = None
    calibration: CalibrationRef | None = None
    verification: Verification | None = None
    drift: DriftReceipt | None = None
    metadata: dict[str, str] = {}
    sessions: int = 1
    native: NativeRef | None = None
    lower_precision: LowerPrecision | None = None
    no_native: str = ""
    observation: ObservationContract | None = None
    backbone: BackboneRef | None = None
    prologue: Prologue | None = None
    resident: dict[str, tuple[int, int]] = {}
    release: int = 0
    migrations: tuple[Migration, ...] = ()
    health: HealthEnvelope | None = None

    def __post_init__(self) -> None:
        """Check the signature, the references between fields, and the budget."""
        controlled = text_with_controls(msgspec.to_builtins(self), FREE_TEXTS)
        if controlled is not None:
            raise SpecError(
                "a name or text of the bundle holds a control character",
                found=printable(controlled),
                expected="one line of characters that print",
                remedy="rename it in the model, and export it again",
            )
        step = self.step
        # A graph for one session may have any axis first; see silero-vad's state, (2, 1, 128).
        if self.sessions != 1:
            check_rows(step, self.sessions)
        if self.observation is not None:
            self.observation.check(step, self.sessions)
        listed = {file.path for file in self.files}
        needed = {state.init_file for state in self.states} | {self.golden}
        if self.native is not None:
            needed |= {*self.native.sources, self.native.library}
            if self.native.golden_digest and self.golden is None:
                raise SpecError("a digest of the golden episode is promised, and there is none")
        if self.backbone is not None:
            needed |= {self.backbone.file, self.backbone.check}
        if not 0 <= self.release < 2**32:
            raise SpecError("a release is a number of 32 bits", found=self.release)
        for migration in self.migrations:
            migration.check(self.states)
        missing = sorted(needed - listed - {None}, key=str)
        if missing:
            raise SpecError("a file is used but not listed", found=missing, expected="in files")
        if self.drift is not None and self.drift.report not in self.files:
            raise SpecError("a file is used but not listed", found=self.drift.report.path)
        paths = [file.path for file in self.all_files]
        if len(set(paths)) != len(paths):
            raise SpecError("a file is listed twice", found=sorted(paths))
        roles = sorted(graph.role for graph in self.graphs if graph.role != "prologue")
        wanted_roles = sorted({"step", *(self.way.roles if self.way else ())})
        if roles not in (wanted_roles, sorted((*wanted_roles, "chunk"))):
            raise SpecError(
                "the bundle has not the graphs that it needs",
                found=", ".join(roles) or "none",
                expected=f"one of each role of {', '.join(wanted_roles)}, and perhaps a 'chunk'",
            )
        if (self.prologue is None) != (len(roles) == len(self.graphs)):
            raise SpecError("a graph and a declaration of the prologue go together")
        for part in (self.prologue, self.health):
            if part is not None:
                part.check(step)
        if self.way is not None and self.way.payload:
            check_payload(step, self.way)
        chunk = self.chunk_graph
        if chunk is not None:
            chunked(step, chunk.steps)  # refuses a signature that cannot have one
        limit = self.budget.state_bytes
        if limit is not None and step.state_bytes > limit:
            raise SpecError(
                "the states do not fit the budget",
                found=f"{step.state_bytes} bytes",
                expected=f"at most {limit} bytes",
                remedy="choose a smaller model, or raise the budget's state_bytes",
            )

    @property
    def is_lower(self) -> bool:
        """Whether a graph of it is in lower precision than its model."""
        return any(graph.precision != "float32" for graph in self.graphs)

    @property
    def precision_words(self) -> str:
        """Its precision, and what that saved where the manifest knows."""
        sizes, name = self.lower_precision, self.step_graph.precision
        if sizes is None:
            return name
        graph = f"{name}: graph {sizes.float_graph_bytes:,} -> {sizes.graph_bytes:,} bytes"
        return f"{graph}, memory {sizes.float_state_bytes:,} -> {self.state_bytes:,} bytes"

    @property
    def standing(self) -> Standing:
        """The one word for what was found: only a sealed bundle is called verified.

        ``candidate`` was not judged yet: never checked, or in lower precision and no drift test;
        ``sealed`` kept its limits; ``refused`` broke them, and somebody took it all the same.
        """
        receipt, drift = self.verification, self.drift
        if receipt is None or (self.is_lower and drift is None):
            return "candidate"
        beyond = receipt.accepted if drift is None else drift.accepted
        return "refused" if beyond else "sealed"

    @property
    def verdict(self) -> str:
        """What is said of it: ``verified`` of a sealed one alone, else its standing."""
        return "verified" if self.standing == "sealed" else self.standing

    @property
    def step(self) -> StepSpec:
        """The signature of one step."""
        return StepSpec(self.inputs, self.outputs, self.states, self.gates, self.constants)

    @property
    def step_graph(self) -> GraphRef:
        """The graph of one step."""
        return next(graph for graph in self.graphs if graph.role == "step")

    @property
    def chunk_graph(self) -> GraphRef | None:
        """The graph of several steps at once, where there is one."""
        return self.graph_of("chunk")

    def graph_of(self, role: str) -> GraphRef | None:
        """The graph of a role, where there is one."""
        return next((graph for graph in self.graphs if graph.role == role), None)

    @property
    def state_bytes(self) -> int:
        """Bytes of one bank of all states together, those of every session included."""
        return self.step.state_bytes

    @property
    def state_bytes_per_session(self) -> int:
        """Bytes of one bank of the states of one session."""
        return self.state_bytes // self.sessions

    @property
    def all_files(self) -> tuple[FileRef, ...]:
        """Every file but the manifest itself."""
        return (*(graph.file for graph in self.graphs), *self.files)


def decode_manifest(raw: bytes) -> Manifest:
    """Read a manifest strictly."""
    try:
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise ManifestError(
            "manifest.json cannot be read",
            found=str(problem),
            expected="a JSON object with an integer schema_version",
            remedy="export the bundle again; the file may be truncated",
        ) from problem
    if version not in READABLE_VERSIONS:
        newer = version > SCHEMA_VERSION
        raise ManifestError(
            "the manifest is of another schema version",
            found=version,
            expected=" or ".join(map(str, READABLE_VERSIONS)),
            remedy="upgrade stategate on this device" if newer else "export the bundle again",
        )
    try:
        return decode_json(raw, Manifest, FREE_TEXTS)
    except msgspec.MsgspecError as problem:
        raise ManifestError(
            "manifest.json breaks its schema",
            found=str(problem),
            expected=f"schema version {SCHEMA_VERSION}, see docs/reference/bundle-format.md",
            remedy="export the bundle again; do not edit manifests by hand",
        ) from problem


class _Versioned(msgspec.Struct):
    schema_version: int
