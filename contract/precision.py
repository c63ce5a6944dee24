"""Precision plans and measured ranges: what calibration decides about numbers, as data.

A plan says what is stored and computed in fewer bits; ranges say how large each tensor became when
the float model ran in closed loop. Export applies both, and neither is ever guessed there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stategate.contract.errors import CalibrationError, SpecError
from stategate.contract.names import close_names, did_you_mean
from stategate.contract.records import load_record, save_record
from stategate.contract.specs import Record, is_threshold

RANGES_VERSION = 1
GATES, RECURRENCE = "gates", "recurrence"

Method = Literal["minmax", "percentile", "entropy", "mse"]


class PrecisionPlan(Record, frozen=True):
    """What a bundle stores and computes in fewer bits than float32.

    Attributes:
        weights: Storage of the weights of projections: ``int8`` symmetric per output channel,
            ``int4`` symmetric in blocks of 32 along the input, ``float16`` widened when read.
        activations: ``int8`` puts a symmetric quantise-dequantise pair before each projection;
            needs ranges, and weights in int8.
        method: How the range of an activation is chosen.
        keep_float: Projections that stay float32: ``gates``, ``recurrence``, or names of groups
            with ``*`` for any text.
        state_storage: Storage of states, by name; those not named stay as they are.
        error_feedback: Whether a stored state carries its rounding error into its next store.
    """

    weights: Literal["float32", "float16", "int8", "int4"] = "float32"
    activations: Literal["float32", "int8"] = "float32"
    method: Method = "minmax"
    keep_float: tuple[str, ...] = (GATES, RECURRENCE)
    state_storage: dict[str, Literal["float32", "float16", "int8", "int8-tensor"]] = {}
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations that no engine runs."""
        if self.activations == "int8" and self.weights != "int8":
            raise SpecError(
                "activations in int8 need weights in int8",
                found=f"weights in {self.weights}",
                remedy='set "weights": "int8", or leave "activations" at "float32"',
            )
        if self.error_feedback and not self.narrow_states:
            raise SpecError(
                "error feedback has nothing to feed back",
                found="no state is stored in fewer bits",
                remedy="name a state in state_storage, or leave error_feedback out",
            )

    @property
    def narrow_states(self) -> dict[str, str]:
        """States that are stored in fewer bits than float32, and in which."""
        return {name: kind for name, kind in self.state_storage.items() if kind != "float32"}

    @property
    def kinds(self) -> set[str]:
        """Element types that a target must have for this plan."""
        stored = {kind.removesuffix("-tensor") for kind in self.narrow_states.values()}
        return {"float32", self.weights, self.activations} | stored

    @property
    def is_float(self) -> bool:
        """Whether it changes nothing."""
        return self.kinds == {"float32"}

    @property
    def label(self) -> str:
        """Its preset's name; for a plan of one's own the kinds that it uses."""
        for name, plan in PRESETS.items():
            if plan == self:
                return name
        parts = [f"{self.weights}-weights"]
        if self.activations != "float32":
            parts.append(f"{self.activations}-activations")
        parts += [f"{kind}-states" for kind in sorted(set(self.narrow_states.values()))]
        return f"{' '.join(parts)} (own plan)"

    @classmethod
    def named(cls, source: str | Path) -> PrecisionPlan:
        """A preset by its name, or a plan from a ``.json`` file."""
        if source in PRESETS:
            return PRESETS[source]
        path = Path(source)
        if path.suffix != ".json":
            raise SpecError(
                "there is no such precision",
                found=source,
                expected=f"{', '.join(PRESETS)}, or a plan's .json file",
                remedy=did_you_mean(close_names(str(source), PRESETS)) or None,
            )
        return load_record(
            path,
            cls,
            SpecError,
            "the precision plan",
            expected="an object of weights, activations, method, keep_float, state_storage "
            "and error_feedback",
            remedy="see docs/guides/precision.md, or have it proposed: stategate model sensitivity",
        )


PRESETS = {
    "float32": PrecisionPlan(),
    "float16-weights": PrecisionPlan(weights="float16"),
    "int8-weights": PrecisionPlan(weights="int8"),
    "int4-weights": PrecisionPlan(weights="int4"),
    "int8": PrecisionPlan(weights="int8", activations="int8"),
}


class HorizonRange(Record, frozen=True):
    """What a tensor did between two steps of its episodes.

    Attributes:
        from_step: First step, counted from 0 within each episode.
        to_step: The step after the last.
        count: Elements seen.
        low: Smallest.
        high: Largest.
        mean: Their mean.
        deviation: Their standard deviation.
    """

    from_step: int
    to_step: int
    count: int
    low: float
    high: float
    mean: float
    deviation: float


class TensorRange(Record, frozen=True):
    """How large one tensor became.

    Attributes:
        name: Its name in the float graph.
        limits: Symmetric range by method, values beyond it being clipped; empty for a tensor that
            no plan quantises, which is here to be looked at.
        horizons: The same tensor by decades of steps; what grows slowly shows here.
    """

    name: str
    limits: dict[Method, float]
    horizons: tuple[HorizonRange, ...]

    def __post_init__(self) -> None:
        """Refuse a range that no number can be scaled by."""
        for method, limit in self.limits.items():
            if not (limit > 0 and is_threshold(limit)):
                raise CalibrationError(
                    f"tensor {self.name!r} cannot have such a range",
                    found=f"{limit!r} by {method}",
                    expected="more than 0, and finite in float32",
                    remedy="measure again: stategate model ranges",
                )


class RangeRecord(Record, frozen=True):
    """Ranges of one model, rolled in closed loop on its own state.

    Attributes:
        model_sha256: Digest of the weights it is for.
        episodes: What the model was rolled through.
        steps: Steps in all.
        tensors: One entry a tensor.
        version: Version of this record's schema.
    """

    model_sha256: str
    episodes: tuple[str, ...]
    steps: int
    tensors: tuple[TensorRange, ...]
    version: int = RANGES_VERSION

    @classmethod
    def load(cls, path: str | Path) -> RangeRecord:
        """Read a record; `CalibrationError` where it cannot be, or is of another version."""
        return load_record(
            path,
            cls,
            CalibrationError,
            "the record of ranges",
            remedy="measure again: stategate model ranges",
            version=RANGES_VERSION,
        )

    def save(self, path: str | Path) -> None:
        """Write the record where `load` reads it; `ResultError` where it cannot be written."""
        save_record(self, path)

    def limits(self, model_sha256: str, method: Method) -> dict[str, float]:
        """Symmetric range of every tensor that can be quantised, by name."""
        if self.model_sha256 != model_sha256:
            raise CalibrationError(
                "the ranges are for another model",
                found=f"weights {self.model_sha256[:12]}",
                expected=f"weights {model_sha256[:12]}",
                remedy="measure again: stategate model ranges",
            )
        return {
            tensor.name: tensor.limits[method] for tensor in self.tensors if method in tensor.limits
        }
