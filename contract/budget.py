"""What a bundle may use on its device, and what happens when it would use more."""

from __future__ import annotations

from typing import Literal

import msgspec

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, is_threshold

WritePolicy = Literal["warn", "adapt", "hold", "raise"]
PersistPolicy = Literal["warn", "hold", "raise"]
DeadlinePolicy = Literal["warn", "raise"]
ResidentPolicy = Literal["warn", "raise"]

_LIMITS = (
    "state_bytes",
    "peak_resident_bytes",
    "writes_per_1000_steps",
    "writes_per_second",
    "appended_bytes_per_1000_steps",
    "folded_bytes_per_1000_steps",
    "persisted_bytes_per_day",
    "lifetime_years",
    "deadline_ms",
)
# Policies from loose to strict, and the limits that each is about.
_POLICIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "on_writes": (
        ("warn", "adapt", "hold", "raise"),
        (
            "writes_per_1000_steps",
            "writes_per_second",
            "appended_bytes_per_1000_steps",
            "folded_bytes_per_1000_steps",
        ),
    ),
    "on_persisted": (("warn", "hold", "raise"), ("persisted_bytes_per_day", "lifetime_years")),
    "on_deadline": (("warn", "raise"), ("deadline_ms",)),
    "on_resident": (("warn", "raise"), ("peak_resident_bytes",)),
}
_DEFAULTS = {"on_writes": "hold", "on_persisted": "hold", "on_deadline": "warn"}


class Budget(Record, frozen=True):
    """Limits of one bundle; None means that no limit was set.

    Attributes:
        state_bytes: Bytes of one bank of all states together.
        peak_resident_bytes: Resident memory of the process: held against the opening plan before
            anything is allocated, and looked at once the engine is loaded, after the first step
            and after every thousand.
        writes_per_1000_steps: Mean rate; a bucket of as many writes allows for bursts, so any n
            steps in a row hold at most ``limit + n * limit / 1000`` writes.
        writes_per_second: The same against time, with a bucket of one second's worth.
        appended_bytes_per_1000_steps: Bytes that go to rings, where writes are deferred, with a
            bucket of as many bytes, and of one row at least.
        folded_bytes_per_1000_steps: The same of the states into which rings are folded; one fold
            at least.
        on_writes: What happens to a write beyond either: ``hold`` keeps the old state, ``raise``
            keeps it and raises, ``adapt`` also raises the gate's threshold until the rate is met,
            ``warn`` lets it through and counts it. ``hold`` unless named.
        adapt_limit: Highest threshold that ``adapt`` may reach.
        persisted_bytes_per_day: Bytes sent to storage; a bucket of one day's worth.
        lifetime_years: The storage must last so long, given ``storage_endurance_bytes``.
        storage_endurance_bytes: What the storage can take in its life (its TBW in bytes).
        on_persisted: What happens to a snapshot beyond that; ``hold`` skips it. ``hold`` unless
            named.
        deadline_ms: Longest time that a step may take.
        on_deadline: ``warn`` counts a miss, ``raise`` also raises after the step. ``warn`` unless
            named.
        on_resident: What happens beyond ``peak_resident_bytes``: ``raise`` refuses to open, or
            raises after the step; ``warn`` opens, goes on, and counts. ``raise`` unless named.
    """

    state_bytes: int | None = None
    peak_resident_bytes: int | None = None
    writes_per_1000_steps: float | None = None
    writes_per_second: float | None = None
    appended_bytes_per_1000_steps: float | None = None
    folded_bytes_per_1000_steps: float | None = None
    on_writes: WritePolicy | None = None
    adapt_limit: float | None = None
    persisted_bytes_per_day: float | None = None
    lifetime_years: float | None = None
    storage_endurance_bytes: float | None = None
    on_persisted: PersistPolicy | None = None
    deadline_ms: float | None = None
    on_deadline: DeadlinePolicy | None = None
    on_resident: ResidentPolicy | None = None

    def __post_init__(self) -> None:
        """Refuse limits that nothing could meet, policies that do not exist, contradictions."""
        for name in (*_LIMITS, "storage_endurance_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SpecError(f"a budget of {name} must be positive", found=value)
        for name, (choices, _) in _POLICIES.items():
            policy = getattr(self, name)
            if policy is not None and policy not in choices:
                raise SpecError(f"unknown policy for {name}", found=policy, expected=choices)
        if (self.lifetime_years is None) != (self.storage_endurance_bytes is None):
            raise SpecError(
                "a lifetime needs the endurance of the storage, and the other way round",
                found=f"lifetime_years={self.lifetime_years}, "
                f"storage_endurance_bytes={self.storage_endurance_bytes}",
            )
        adapts = self.on_writes == "adapt"
        if adapts and (self.adapt_limit is None or self.writes_per_1000_steps is None):
            raise SpecError(
                "adapting needs a rate to meet and a threshold to stop at",
                found=f"writes_per_1000_steps={self.writes_per_1000_steps}, "
                f"adapt_limit={self.adapt_limit}",
                expected="both",
            )
        if self.adapt_limit is not None and not is_threshold(self.adapt_limit):
            raise SpecError("adapt_limit must be finite in float32", found=self.adapt_limit)
        peak, state = self.peak_resident_bytes, self.state_bytes
        if peak is not None and state is not None and peak < 2 * state:
            raise SpecError(
                "peak_resident_bytes contradicts state_bytes",
                found=f"{peak} and {state}",
                expected="a peak of at least two banks of the states",
            )

    @property
    def limits_writes(self) -> bool:
        """Whether a write may be refused."""
        return any(getattr(self, limit) is not None for limit in _POLICIES["on_writes"][1])

    @property
    def persisted_limit_per_day(self) -> float | None:
        """Bytes a day from both ways of saying it, the smaller one."""
        limits = [self.persisted_bytes_per_day]
        if self.lifetime_years is not None and self.storage_endurance_bytes is not None:
            limits.append(self.storage_endurance_bytes / (self.lifetime_years * 365.25))
        return min((limit for limit in limits if limit is not None), default=None)

    def tightened(self, by: Budget) -> Budget:
        """This budget with every limit of another that is stricter."""
        changes: dict[str, object] = {}
        for name in _LIMITS:
            own, tighter = getattr(self, name), getattr(by, name)
            # A longer life is the stricter wish; of everything else, less is.
            looser = tighter is not None and own is not None
            looser = looser and (tighter < own if name == "lifetime_years" else tighter > own)
            if looser:
                raise _looser(name, tighter, own)
            if tighter is not None:
                changes[name] = tighter
        for name, (choices, limits) in _POLICIES.items():
            own, tighter = getattr(self, name), getattr(by, name)
            limited = any(getattr(self, limit) is not None for limit in limits)
            default = _DEFAULTS.get(name, "raise")
            if tighter is None:
                continue
            if limited and choices.index(tighter) < choices.index(own or default):
                raise _looser(name, tighter, own or default)
            changes[name] = tighter
        for name in ("adapt_limit", "storage_endurance_bytes"):
            if getattr(by, name) is not None:
                changes[name] = getattr(by, name)
        result = msgspec.structs.replace(self, **changes)
        before, after = self.persisted_limit_per_day, result.persisted_limit_per_day
        if before is not None and after is not None and after > before:
            # A larger endurance would loosen the same lifetime.
            raise _looser("storage_endurance_bytes", by.storage_endurance_bytes, before)
        return result


def _looser(name: str, found: object, expected: object) -> SpecError:
    return SpecError(
        f"a caller can tighten the bundle's budget, and not loosen it: {name}",
        found=found,
        expected=f"{expected} or stricter",
        remedy="export the bundle with another budget",
    )
