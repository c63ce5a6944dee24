"""One row of the list: adopt a file, step it beside the untouched one, race its engines."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from lab.foreign.inputs import episode
from lab.foreign.oracle import Arrays, in_a_loop, in_one_call
from lab.foreign.packages import fetch
from stategate.common.timing import TimedCall, time_in_turns
from stategate.contract import Bundle, Episode
from stategate.contract.durable import write_whole
from stategate.contract.errors import ResultError
from stategate.contract.specs import Record
from stategate.runtime import Session

STEPS = 200
EPISODE = 100  # after so many steps both sides begin anew
_LONGEST_S = 1800.0
_ROUNDS = 10


class Row(Record, frozen=True, kw_only=True):
    """One file of one package, and what is expected of it."""

    model: str
    what: str  # in a few words
    package: str  # see `lab.foreign.packages.fetch`
    file: str
    options: str = ""  # after `stategate adopt FILE`, without --out, --engines and --episode
    inputs: dict[str, str] = {}  # see `lab.foreign.inputs.episode`
    # Axes of time of a file that keeps its memory inside, by input and output.
    time_axes: dict[str, int] = {}
    adopted: bool
    lifted: bool = False
    native: bool = False
    reason: str = ""  # words that must stand in the reason
    tolerance: float = 1e-5  # of the parity


class Outcome(Record, frozen=True, kw_only=True):
    """What came of a row.

    Attributes:
        model: Name of the row.
        what: What it is.
        source: Package and version.
        file: Path in the package.
        options: What was typed after ``stategate adopt FILE``.
        adopted: Whether there is a verified bundle.
        lifted: Whether memory that the file keeps inside became a state of it.
        native: Whether it has the native engine.
        reason: What was said where it is not adopted, or not native.
        state_bytes: Of the memory.
        parity: Largest difference of an output from the untouched file in ONNX Runtime, over both
            engines, 200 steps and a reset, in units of the largest magnitude of that output, at
            least 1. The file runs in a plain loop, or over whole episodes where memory was lifted.
        native_over_ort: p50 of a step with the native engine over p50 with ONNX Runtime, in one
            run.
    """

    model: str
    what: str
    source: str
    file: str
    options: str
    adopted: bool
    lifted: bool = False
    native: bool = False
    reason: str = ""
    state_bytes: int | None = None
    parity: float | None = None
    native_over_ort: float | None = None


def attempt(row: Row, folder: Path) -> Outcome:
    """What comes of a row; downloads, bundles and logs stay in the folder.

    Raises:
        ResultError: The file cannot be had, or the command crashed instead of refusing.
    """
    path = fetch(row.package, row.file, folder)
    outcome = Outcome(
        model=row.model,
        what=row.what,
        source=row.package,
        file=row.file,
        options=row.options,
        adopted=False,
    )
    out, recording = folder / "bundles" / row.model, folder / "episodes" / f"{row.model}.npz"
    for file in (out, recording):
        file.parent.mkdir(parents=True, exist_ok=True)
    # The first bundle says which inputs there are; the second is checked on inputs that fit them.
    reason = _adopt(row, path, out, "--steps", "4")
    if not reason:
        inputs = episode(Bundle.open(out).manifest.inputs, row.inputs, STEPS)
        write_whole(recording, inputs.to_bytes())
        more = ("--episode", str(recording), "--engines", "onnxruntime,native")
        reason = _adopt(row, path, out, *more)
    if reason:
        return replace(outcome, reason=reason)
    manifest = Bundle.open(out).manifest
    native = manifest.native is not None
    return replace(
        outcome,
        adopted=True,
        lifted=bool(row.time_axes),
        native=native,
        reason=in_short(manifest.no_native),
        state_bytes=manifest.state_bytes,
        parity=_parity(row, path, out, inputs, native),
        native_over_ort=_race(out, inputs) if native else None,
    )


def _adopt(row: Row, path: Path, out: Path, *more: str) -> str:
    """Make a bundle; why there is none, or nothing."""
    shutil.rmtree(out, ignore_errors=True)
    program = Path(sys.executable).with_name("stategate")
    command = [str(program), "adopt", str(path), *shlex.split(row.options), *more]
    command += ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    out.with_suffix(".log").write_text(done.stdout + done.stderr)
    if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
        raise ResultError(f"adopt of {row.model} crashed", found=done.stderr[-1000:])
    if done.returncode and out.exists():
        raise ResultError(f"the refusal of {row.model} left something behind", found=out)
    return in_short(done.stderr) if done.returncode else ""


def in_short(message: str) -> str:
    """What a refusal says and found, in one line."""
    lines = re.split(r"^\w+Error: ", message, flags=re.MULTILINE)[-1]
    text = " ".join(lines.replace("|", " ").split())
    text = re.split(r" (?:expected|what to do): ", text)[0]
    return text.replace(" found: ", ": ")


def _parity(row: Row, path: Path, out: Path, inputs: Episode, native: bool) -> float:
    worst: dict[str, float] = {}
    size: dict[str, float] = {}
    for start in range(0, STEPS, EPISODE):
        part = Episode({n: a[start : start + EPISODE] for n, a in inputs.inputs.items()})
        expected = (
            in_one_call(path, out, part, row.time_axes)
            if row.time_axes
            else in_a_loop(path, out, part)
        )
        for engine in ("onnxruntime", "native")[: 1 + native]:
            for right, answer in zip(expected, _answers(out, part, engine), strict=True):
                for name, array in right.items():
                    if answer[name].shape != array.shape:
                        raise ResultError(
                            f"{row.model} gives {name} in another shape",
                            found=answer[name].shape,
                            expected=f"{array.shape}; time_axes of the row may lack it",
                        )
                    difference = np.abs(answer[name] - array.astype(np.float64))
                    worst[name] = max(worst.get(name, 0.0), float(difference.max(initial=0.0)))
                    size[name] = max(size.get(name, 1.0), float(np.abs(array).max(initial=0)))
    return max(worst[name] / size[name] for name in worst)


def _answers(out: Path, inputs: Episode, engine: str) -> list[Arrays]:
    with Session.open(out, engine=engine) as session:
        return [{n: a.copy() for n, a in session.step(**now).items()} for now in inputs]


def _calling(session: Session) -> Callable[[Arrays], object]:
    return lambda feed: session.step(**feed)


def _race(out: Path, inputs: Episode) -> float:
    feeds = list(inputs)
    with (
        Session.open(out, engine="native") as native,
        Session.open(out, engine="onnxruntime") as ort,
    ):
        sides = {"native": native, "ort": ort}
        times = time_in_turns(
            {name: TimedCall(_calling(side), feeds, side.reset) for name, side in sides.items()},
            rounds=_ROUNDS,
            burst=STEPS // 2,
        )
    return float(np.median(times["native"]) / np.median(times["ort"]))
