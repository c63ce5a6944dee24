"""Target profiles: one TOML a device, every figure with its source and date, read strictly.

What no source tells is written ``"unknown"`` in the file and is None here; nothing has a default.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Sequence
from typing import Annotated, Generic, TypeVar

import msgspec

from stategate.common import cpu
from stategate.contract.errors import TargetError
from stategate.contract.manifest import TargetRef
from stategate.contract.precision import PrecisionPlan
from stategate.targets.flash import storage_names
from stategate.targets.ladder import load_ladder
from stategate.targets.toml_tables import read_table, table_names

_FOLDER = "profiles"
# Every element type that a profile may name.
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4", "float8", "float4")
# Cores that have more than the least of their machine: Arm's technical reference manuals, and
# NVIDIA's for Carmel. What comes after Armv8.2-A brings a step in float32 nothing.
_ISAS = dict.fromkeys(("Cortex-A76", "Cortex-A78AE", "Carmel", "Neoverse-V3AE"), "armv8.2-a")

Value = TypeVar("Value")
Text = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Many = Annotated[int, msgspec.Meta(ge=1)]


class Sourced(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that somebody says."""

    # who says so; for an unknown figure, where it was looked for
    source: Annotated[str, msgspec.Meta(min_length=4)]
    date: datetime.date  # when that was read


class Figure(Sourced, Generic[Value], frozen=True, kw_only=True):
    """One figure; None where no source tells it."""

    value: Value | None


class Accelerator(Sourced, frozen=True, kw_only=True):
    """A GPU, and the element types that its hardware has."""

    name: Text
    compute_capability: Text
    cuda_cores: Many | None
    tensor_cores: Count | None
    dla_cores: Count | None
    precisions: tuple[str, ...]


class Bandwidth(Sourced, frozen=True, kw_only=True):
    """Peak of the memory in 10^9 bytes a second, in a power mode, or None for all of them."""

    gb_per_s: Positive
    mode: str | None


class Tops(Sourced, frozen=True, kw_only=True):
    """Peak rate in 10^12 operations a second, a multiply-add being two."""

    precision: str  # element type
    part: Text  # ``gpu``, ``dla``, or ``module`` for all together
    dense: Positive | None  # of dense operands
    sparse: Positive | None  # with 2:4 sparsity
    mode: str | None  # power mode in which it is reached; None where the source does not say


class PowerMode(Sourced, frozen=True, kw_only=True):
    """One power mode: its name in ``nvpmodel.conf`` and its budget in watts."""

    name: Text
    watts: Positive | None
    default: bool


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known about a device."""

    name: Text  # its name on the command line
    description: Text  # one line for the reader
    machine: Text  # processor architecture as ``uname -m`` prints it
    memory_bytes: Figure[Many]  # memory that processor and accelerator share
    system_reserve_bytes: Figure[Count]  # what firmware and system keep of it
    cpu: Figure[Text]  # kind of its cores
    cores: Figure[Many]  # how many
    storage: Figure[tuple[str, ...]]  # names of the media that it may carry
    # element types that are legal there, by engine; none where the engine cannot run
    engines: dict[str, Figure[tuple[str, ...]]]
    # releases of JetPack that support it; None for what is no Jetson
    jetpack: Figure[tuple[str, ...]] | None = None
    # parts of what its device tree says it is compatible with
    compatible: Figure[tuple[str, ...]] | None = None
    accelerator: Accelerator | None = None  # its GPU; None where nothing of it is used
    bandwidth: tuple[Bandwidth, ...] = ()  # peaks of the memory, by power mode
    tops: tuple[Tops, ...] = ()  # peak rates of arithmetic
    power_modes: tuple[PowerMode, ...] = ()  # names and budgets

    def __post_init__(self) -> None:
        """Refuse figures that contradict each other, by field."""
        memory, reserve = self.memory_bytes.value, self.system_reserve_bytes.value
        if memory is not None and reserve is not None and reserve >= memory:
            _refuse("system_reserve_bytes", f"{reserve:,} of {memory:,} bytes of memory")
        _check_words("storage", self.storage.value, storage_names())
        if self.jetpack is not None:
            ladder = [release.jetpack for release in load_ladder().release]
            _check_words("jetpack", self.jetpack.value, ladder)
        for engine, legal in self.engines.items():
            _check_words(f"engines.{engine}", legal.value, PRECISIONS)
        hardware = self.accelerator.precisions if self.accelerator else ()
        _check_words("accelerator.precisions", hardware, PRECISIONS)
        # TensorRT has no emulation: what the hardware lacks is not legal, whoever says so.
        tensorrt = self.engines.get("tensorrt")
        if tensorrt is not None:
            _check_words("engines.tensorrt", tensorrt.value, hardware, "the accelerator has not")
        _check_words(
            "tops", {one.precision for one in self.tops}, hardware, "the accelerator has not"
        )
        for one in self.tops:
            if one.dense is not None and one.sparse is not None and one.sparse < one.dense:
                _refuse("tops", f"{one.precision}: sparse {one.sparse:g} < dense {one.dense:g}")
        for field, peaks in (
            ("bandwidth", [one.mode for one in self.bandwidth]),
            ("tops", [(one.precision, one.part, one.mode) for one in self.tops]),
        ):
            if len(set(peaks)) < len(peaks):
                _refuse(field, "two figures for one power mode")
        modes = [mode.name for mode in self.power_modes]
        if len(set(modes)) < len(modes):
            _refuse("power_modes", "a name is there twice")
        if sum(mode.default for mode in self.power_modes) > 1:
            _refuse("power_modes", "more than one is the default")
        _check_words("bandwidth.mode", {b.mode for b in self.bandwidth if b.mode}, modes)
        _check_words("tops.mode", {t.mode for t in self.tops if t.mode}, modes)

    def lacks(self, plan: PrecisionPlan, engine: str) -> list[str]:
        """Element types of a plan that are not known to work there with an engine, sorted."""
        figure = self.engines.get(engine)
        return sorted(plan.kinds - set((figure.value if figure else None) or ()))

    @property
    def is_microcontroller(self) -> bool:
        """Whether a session in C is all that runs there: no Python, and no library is loaded."""
        return "c" in self.engines

    def check(self, plan: PrecisionPlan, engine: str = "") -> None:
        """Refuse a plan that needs an element type that is not known to work there."""
        engine = engine or ("c" if self.is_microcontroller else "onnxruntime")
        if lacking := self.lacks(plan, engine):
            figure = self.engines.get(engine)
            legal = ", ".join((figure.value if figure else None) or ())
            because = figure.source if figure else f"its profile does not name {engine}"
            raise TargetError(
                f"{self.name} does not run {' and '.join(lacking)} with {engine}",
                found=f"precision {plan.label}",
                expected=f"{legal or 'nothing'}: {because}",
                remedy="choose another --precision or --target",
            )

    def dense_tops(self, precision: str) -> float | None:
        """Highest dense rate of one part in any power mode; None where no source tells one."""
        rates = [t.dense for t in self.tops if t.precision == precision and t.dense is not None]
        return max(rates, default=None)

    @property
    def peak_bandwidth_gb_per_s(self) -> float | None:
        """Bandwidth of the memory in the best power mode; None where no source tells it."""
        return max((one.gb_per_s for one in self.bandwidth), default=None)

    @property
    def isa(self) -> str:
        """What a compiler may use there, as its ``-march``; empty for an unknown kind of CPU."""
        return _ISAS.get(self.cpu.value or "", cpu.LEAST.get(self.machine, ""))

    def ref(self, *, this_machine: bool = False) -> TargetRef:
        """What the manifest keeps of it."""
        return TargetRef(self.name, self.machine, "" if this_machine else self.isa)


def _refuse(field: str, problem: str) -> None:
    raise ValueError(f"{field}: {problem}")


def _check_words(
    field: str,
    words: Iterable[str] | None,
    legal: Sequence[str],
    problem: str = "is not known",
) -> None:
    strange = sorted(set(words or ()) - set(legal))
    if strange:
        _refuse(field, f"{', '.join(strange)} {problem}; known: {', '.join(legal) or 'none'}")


def names() -> list[str]:
    """Names of all known targets."""
    return table_names(_FOLDER)


def load(name: str) -> TargetProfile:
    """Read one profile."""
    profile = read_table(_FOLDER, name, "target", TargetProfile)
    if profile.name != name:
        raise TargetError(
            f"{_FOLDER}/{name}.toml is not about {name}", found=f"name: {profile.name}"
        )
    return profile


def generic(machine: str | None = None) -> TargetProfile:
    """The profile of any machine of an architecture; of this one's if left out."""
    machine = machine or platform.machine()
    generics = {name for name in names() if name.startswith("cpu-")}
    name = f"cpu-{machine.replace('_', '-')}"
    if name in generics:
        return load(name)
    raise TargetError(
        "no target profile is for this machine",
        found=machine,
        expected=", ".join(sorted(load(name).machine for name in generics)),
        remedy="name one with --target",
    )


def recognise(compatible: tuple[str, ...]) -> TargetProfile | None:
    """The profile of a board, by what its device tree is compatible with; None if no one is."""
    for name in names():
        profile = load(name)
        parts = profile.compatible.value if profile.compatible else None
        if any(part in word for part in parts or () for word in compatible):
            return profile
    return None
