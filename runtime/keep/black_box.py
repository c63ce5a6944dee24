"""The black box: the last minutes of a session in a file of fixed size, so that they step again.

A ring of records (`stategate.runtime.keep.records`). Each step leaves its inputs and the chain of
hashes over the states after it. A keyframe holds the states themselves: at the beginning, where
something other than a step changed them, and now and then, so that what is left of a ring begins
with one soon. The file says what the memory did on the next machine as well: see
`stategate.runtime.check.recording`.

Between two blocks nothing is called and nothing allocated but numbers. A process that is killed
loses the block that was being filled; a loss of power also what the system had not yet written.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from stategate.contract import Manifest
from stategate.contract.arguments import check_kinds
from stategate.contract.errors import SpecError
from stategate.contract.numbers import positive, whole
from stategate.runtime.keep.records import BLOCK_BYTES, ROOM, stored_bytes

PURPOSE = 1
OPENED, KEYFRAME, STEP = 1, 2, 3  # kinds of records
# Flags of a keyframe: something else than a step changed the states; steps before it are missing;
# the states are the initial ones, and not in the payload.
REPLACED, MISSED, INITIAL = 1, 2, 4
# Flags of a step: it was not permitted to write; it wrote; NaN or Inf, or the engine's own failure,
# refused it and the states stayed.
OVERDRAWN, WROTE, FAULT, SKIPPED = 1, 2, 4, 8
# Flag of an opening that is said again, so that a ring that came around still says it.
AGAIN = 1
STEP_HEAD = struct.Struct("<Qd")  # chain after the step; how far the threshold was moved
KEYFRAME_HEAD = struct.Struct("<QQ")  # chain before the next step; nanoseconds since 1970
DEFAULT_BYTES = 16 << 20
_ABOUT_BYTES = 1024  # more or less, of an opening
_KEYFRAMES = 8  # in a ring, at least


def graph_digest(manifest: Manifest) -> str:
    """What a recording and a bundle must have in common: the graph, weights included.

    Another library of the same graph, or another threshold, makes another bundle of it, and C code
    does not know the digest of the bundle that it is a part of.
    """
    return manifest.step_graph.file.sha256


@dataclass(frozen=True, slots=True)
class BlackBox:
    """Where a session keeps its last minutes, and how many.

    Attributes:
        path: The file; made if it is not there, and gone on with if it is this bundle's.
        minutes: How many are kept at least, where nothing but steps is recorded.
        file_bytes: Size of the file instead; 16 MiB where neither is given.
        rate_hz: Steps per second, for the minutes; that of the bundle where it is None.
    """

    path: str | Path
    minutes: float | None = None
    file_bytes: int | None = None
    rate_hz: float | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        check_kinds(self)
        if self.minutes is not None and self.file_bytes is not None:
            raise SpecError("a black box has minutes or file_bytes, and not both")
        for name, most in (("minutes", 1e6), ("file_bytes", 1 << 40), ("rate_hz", 1e6)):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), most)
        if self.file_bytes is not None:
            object.__setattr__(self, "file_bytes", whole("file_bytes", self.file_bytes))

    def geometry(self, manifest: Manifest) -> tuple[int, int]:
        """Blocks of the file, and bytes of steps between two keyframes.

        Raises:
            SpecError: The rate is not known, or the file is too small to step again from.
        """
        inputs = sum(spec.nbytes for spec in manifest.inputs)
        step = stored_bytes(STEP_HEAD.size + inputs)
        keyframe = stored_bytes(KEYFRAME_HEAD.size + manifest.state_bytes) + _ABOUT_BYTES
        if self.minutes is None:
            blocks = (self.file_bytes or DEFAULT_BYTES) // BLOCK_BYTES - 1
            least = -(-(3 * _KEYFRAMES * (keyframe + step)) // (2 * ROOM)) + 4
            if blocks < least and self.file_bytes is not None:
                raise SpecError(
                    "a black box of this size could not be stepped again",
                    found=f"{self.file_bytes} bytes",
                    expected=f"at least {(1 + least) * BLOCK_BYTES}",
                )
            blocks = max(blocks, least)
            return blocks, max(blocks * ROOM // _KEYFRAMES, 4 * keyframe)
        observation = manifest.observation
        rate_hz = self.rate_hz or (observation.rate_hz if observation is not None else None)
        if rate_hz is None:
            raise SpecError(
                "minutes of a black box need the rate of the steps",
                remedy="BlackBox(path, minutes=..., rate_hz=50), or on the command line an episode "
                "that has a rate; without minutes it keeps 16 MiB",
            )
        span = math.ceil(self.minutes * 60.0 * rate_hz) * step
        interval = max(span // _KEYFRAMES, 4 * keyframe, 4 * step)
        # Of the oldest interval only a part may be there: what comes before its keyframe is lost.
        keyframes = span // interval + 3
        return -(-(span + interval + keyframes * keyframe) // ROOM) + 4, interval
