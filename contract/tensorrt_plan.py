"""A TensorRT plan that was built on a device: what it was made of, and who may load it.

Plans lie beside the bundle and not in it, in ``<bundle>.engines/<key>/``: they belong to one
device, and the bundle's digests stay as they were sealed. A plan is machine code of one GPU and one
release of TensorRT, so it is loaded only where everything in its fingerprint is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from stategate.contract.bundle import sha256
from stategate.contract.errors import EngineError, SpecError
from stategate.contract.failures import failures
from stategate.contract.manifest import FileRef
from stategate.contract.reading import read_bounded
from stategate.contract.records import canonical_json, load_record
from stategate.contract.specs import Record

# Counts up whenever the graph that is built differs in meaning for the same ONNX file.
RECIPE = 1
# Output that the built graph has beyond the step's: sum of magnitudes of each guarded next state.
GUARD = "stategate_sum_abs"
RECORD = "record.json"
PLAN = "step.plan"
VARIANT = "step.onnx"
LOG = "build.log"
TIMING_CACHE = "timing.cache"

_WORDS = {
    "library": "library",
    "version": "TensorRT",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "multiprocessors": "multiprocessors of the GPU",
    "machine": "architecture",
    "system": "system",
    "cuda": "CUDA of the driver",
    "l4t": "Jetson Linux",
    "recipe": "stategate's graph recipe",
    "onnx_sha256": "graph of the bundle",
    "flags": "builder flags",
}


class PlanFingerprint(Record, frozen=True, kw_only=True):
    """Everything that must be the same where a plan is loaded."""

    # ``tensorrt`` or ``tensorrt_rtx``; neither loads the other's plans
    library: Literal["tensorrt", "tensorrt_rtx"]
    version: str  # all of its version, such as ``10.3.0``
    gpu: str  # the GPU's name
    compute_capability: str  # such as ``8.7``
    multiprocessors: int  # how many; Jetson modules of different size share name and capability
    machine: str  # processor architecture
    system: str  # kernel's name, in small letters
    cuda: str  # CUDA version of the driver
    l4t: str | None  # release of Jetson Linux, or None elsewhere
    onnx_sha256: str  # digest of the bundle's step graph
    flags: tuple[str, ...] = ()  # flags of the builder, in order
    recipe: int = RECIPE  # version of the way from that graph to the one that was built

    @property
    def key(self) -> str:
        """A short name for the place, that of the plan's folder.

        Flags are left out of it: of two plans for one place nobody could tell which is loaded.
        """
        return sha256(canonical_json(msgspec.structs.replace(self, flags=())))[:16]

    def differences(self, machine: PlanFingerprint) -> list[str]:
        """What differs where the plan shall be loaded, one phrase each; empty if nothing does."""
        return [
            f"{word} {_short(own)} in the plan, {_short(other)} here"
            for name, word in _WORDS.items()
            if (own := getattr(self, name)) != (other := getattr(machine, name))
        ]


class PlanRecord(Record, frozen=True, kw_only=True):
    """What lies beside a plan, as ``record.json``."""

    fingerprint: PlanFingerprint  # where the plan may be loaded
    plan: FileRef  # the plan and its digest
    variant: FileRef  # the graph that was given to TensorRT's parser
    plan_bytes: int  # size of the plan
    guarded: tuple[str, ...]  # states whose next value `GUARD` sums, in its order
    cuda_graph: bool = True  # whether steps are captured in CUDA graphs
    # whether the weights are not in the plan and come from the variant at load
    stripped: bool = False
    workspace_bytes: int  # scratch memory that the builder might use
    # digest of the timing cache after the build; None where there is none
    timing_cache_sha256: str | None = None
    built_by: Literal["python", "trtexec"] = "python"  # ``python`` or ``trtexec``

    def __post_init__(self) -> None:
        """Check the sizes; everything else is checked against the bundle or by digest."""
        if self.plan_bytes < 1 or self.workspace_bytes < 1:
            raise SpecError(
                "an engine's plan and workspace have a size",
                found=f"{self.plan_bytes} and {self.workspace_bytes} bytes",
                expected="at least 1",
            )


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan on disk whose record was read."""

    folder: Path
    record: PlanRecord

    def hindrances(self, machine: PlanFingerprint) -> list[str]:
        """What of a place differs from the plan's, but for flags; empty if it may be loaded."""
        own = self.record.fingerprint
        return own.differences(msgspec.structs.replace(machine, flags=own.flags))

    def read(self, file: FileRef) -> bytes:
        """Bytes of one of its files, checked."""
        path = self.folder / file.path
        try:
            data = read_bounded(path)
        except failures(OSError):
            data = b""
        if sha256(data) != file.sha256:
            short = file == self.record.plan and len(data) < self.record.plan_bytes
            raise EngineError(
                f"the engine's file {file.path} is "
                + ("truncated or missing" if short else "not the one that was built"),
                found=f"{len(data)} bytes in {self.folder}",
                expected=f"sha256 {file.sha256[:12]}"
                + (f", {self.record.plan_bytes} bytes" if file == self.record.plan else ""),
                remedy="build it again on this device: stategate device build-engine BUNDLE"
                + (" --new-timing-cache" if file.path == TIMING_CACHE else ""),
            )
        return data


def plans_folder(bundle: Path) -> Path:
    """Where the plans of a bundle lie: a folder beside it."""
    return bundle.with_name(f"{bundle.name}.engines")


def stored_plans(bundle: Path) -> list[StoredPlan]:
    """Every plan beside a bundle."""
    return [
        StoredPlan(path.parent, _record(path))
        for path in sorted(plans_folder(bundle).glob(f"[!.]*/{RECORD}"))
    ]


def plan_for(bundle: Path, heres: Sequence[PlanFingerprint]) -> tuple[StoredPlan, PlanFingerprint]:
    """The plan that was built for exactly this place.

    Returns:
        The plan, and which of ``heres`` it is for.
    """
    nearest: list[str] | None = None
    for machine in heres:
        for stored in reversed(stored_plans(bundle)):
            differs = stored.hindrances(machine)
            if not differs:
                return stored, machine
            if nearest is None or len(differs) < len(nearest):
                nearest = differs
    raise EngineError(
        "no TensorRT engine of this bundle was built for this device and this software",
        found="; ".join(nearest) if nearest else f"no engine in {plans_folder(bundle)}",
        expected="an engine with the same fingerprint; another one may load and answer wrongly",
        remedy="build it here: stategate device build-engine BUNDLE",
    )


def _record(path: Path) -> PlanRecord:
    remedy = f"delete {path.parent} and build again: stategate device build-engine BUNDLE"
    return load_record(path, PlanRecord, EngineError, "the record of an engine", remedy=remedy)


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, tuple):
        return "+".join(value) or "none"
    return "none" if value is None else str(value)
