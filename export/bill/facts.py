"""What a bundle itself says of what is in it: read from manifest, calibration and receipts once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

import msgspec

from stategate.contract import Bundle, CalibrationRecord, Manifest
from stategate.contract.calibration import Interval
from stategate.contract.errors import SpecError
from stategate.contract.receipts import NOISE
from stategate.contract.records import canonical_json
from stategate.export.bill.about import NOASSERTION, About, check_licence


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a receipt, with what it was measured on."""

    name: str
    value: float
    measured_on: str = ""
    interval: Interval | None = None  # where it lies with 95 % confidence

    @property
    def words(self) -> str:
        """The figure, its interval, and where it comes from."""
        text = f"{self.value:.6g}"
        if self.interval is not None:
            text += f" (95 %: {self.interval.low:.6g} to {self.interval.high:.6g})"
        return f"{text}, {self.measured_on}" if self.measured_on else text


@dataclass(frozen=True, slots=True)
class Tool:
    """A program or library that made the bundle."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a bill says, before it is put into one of the two formats."""

    bundle: Bundle
    about: About
    identity: uuid.UUID  # the same for the same bundle and declaration
    tools: tuple[Tool, ...]
    metrics: tuple[Metric, ...]
    thresholds: dict[str, float]
    hyperparameters: dict[str, str]
    limitations: tuple[str, ...]

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.bundle.manifest

    @property
    def version(self) -> str:
        """The declared one, or the start of the bundle's digest."""
        return self.about.version or self.bundle.digest[:12]

    @property
    def purl(self) -> str:
        """A package URL without a registry."""
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.manifest.model.name)
        return f"pkg:generic/{name}@{self.version}?checksum=sha256:{self.bundle.digest}"

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 by path of everything in the bundle, its manifest first."""
        listed = {file.path: file.sha256 for file in self.manifest.all_files}
        return {"manifest.json": self.bundle.digest, **dict(sorted(listed.items()))}


def facts_of(bundle: Bundle, about: About) -> Facts:
    """Read a bundle's own records."""
    manifest = bundle.manifest
    seed = bundle.digest.encode() + canonical_json(about)
    return Facts(
        bundle,
        about,
        uuid.uuid5(uuid.NAMESPACE_OID, seed.hex()),
        tuple(_tools(manifest)),
        tuple(_metrics(bundle)),
        {g.name: g.threshold for g in manifest.gates if g.threshold is not None},
        dict(_hyperparameters(manifest)),
        (*_limitations(manifest), *about.limitations),
    )


def _tools(manifest: Manifest) -> Iterator[Tool]:
    for name, version in sorted(manifest.producer.items()):
        yield Tool(name, version, _licence(name, version))
    if manifest.native is not None:
        name, _, version = manifest.native.generator.rpartition(" ")
        yield Tool(name or version, version, _licence(name, version))
        if manifest.native.compiler:
            yield Tool("C compiler", manifest.native.compiler, NOASSERTION)


def _licence(package: str, version: str) -> str:
    """What the package itself declares, where the same version of it is installed here."""
    try:
        declared: Mapping[str, Any] = metadata(package).json
    except PackageNotFoundError:
        return NOASSERTION
    text = str(declared.get("license_expression") or declared.get("license") or "")
    if declared.get("version") != version:
        return NOASSERTION
    try:
        check_licence(text)
    except SpecError:
        return NOASSERTION
    return text


def _metrics(bundle: Bundle) -> Iterator[Metric]:
    manifest, receipt = bundle.manifest, bundle.manifest.verification
    if receipt is not None:
        on = f"{receipt.steps:,} steps of {receipt.inputs.words} against {receipt.reference}"
        for name in ("max_output_error", "max_state_error", "max_chunk_error"):
            value = getattr(receipt, name)
            if value is not None:
                yield Metric(name, value, on)
        yield Metric("gate_flips", receipt.gate_flips, on)
        for gate, opened in sorted(receipt.gate_openings.items()):
            rate = opened / (receipt.steps * manifest.sessions)
            yield Metric(f"write_rate of {gate}", rate, on)
    if manifest.drift is not None:
        on = f"drift test over {manifest.drift.steps:,} steps"
        yield Metric("broken_limits", len(manifest.drift.findings), on)
    record = _calibration(bundle)
    for chosen in record.gates if record else ():
        on = f"calibration over {record.steps:,} steps of {record.episodes}" if record else ""
        for point in chosen.curve:
            if point.threshold != chosen.threshold:
                continue
            gate = chosen.gate
            rate, right = point.element_rate, point.accuracy
            yield Metric(f"calibrated write_rate of {gate}", rate, on, point.write_interval)
            if right is not None:
                yield Metric(f"accuracy with {gate}", right, on, point.accuracy_interval)
            if point.output_error is not None:
                yield Metric(f"output_error with {gate}", point.output_error, on)


def _calibration(bundle: Bundle) -> CalibrationRecord | None:
    ref = bundle.manifest.calibration
    files = [f for f in bundle.manifest.files if ref is not None and f.sha256 == ref.sha256]
    return msgspec.json.decode(bundle.read(files[0]), type=CalibrationRecord) if files else None


def _hyperparameters(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "precision", manifest.step_graph.precision
    yield "state_bytes", str(manifest.state_bytes)
    yield "sessions", str(manifest.sessions)
    yield "opset", str(manifest.step_graph.opset)
    for state in manifest.states:
        yield f"state {state.name}", f"{state.dtype} {list(state.shape)}"
    for gate in manifest.gates:
        yield f"gate {gate.name}", f"{gate.kind}, {gate.granularity}"


def _limitations(manifest: Manifest) -> Iterator[str]:
    """What the receipts say that nobody may expect of the model."""
    receipt = manifest.verification
    yield f"judged as {manifest.standing}; only a sealed bundle is verified"
    if receipt is not None:
        yield f"checked over {receipt.steps:,} steps of {receipt.inputs.words}, and no others"
        if receipt.inputs.kind == "noise":
            yield NOISE
        yield from receipt.notes
        if receipt.accepted is not None:
            yield f"accepted beyond its limits by {receipt.accepted}"
    if manifest.drift is not None:
        yield from manifest.drift.findings
    if manifest.calibration is not None:
        yield f"thresholds: {manifest.calibration.summary}"
    if manifest.native is not None and manifest.native.inexact:
        yield f"last bits differ between builds in {', '.join(manifest.native.inexact)}"
    for tensor in manifest.inputs:
        yield f"takes {tensor.name} as {tensor.dtype} {list(tensor.shape)} and nothing else"
