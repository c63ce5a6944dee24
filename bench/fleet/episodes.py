"""Episodes from a fleet's black boxes: what the robots met is what their gates are chosen for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stategate.bench.fleet.collect import robots_in, sources_in
from stategate.contract import Bundle, Episode, sha256
from stategate.contract.durable import make_folder, write_whole
from stategate.contract.errors import EpisodeError, ResultError, StategateError
from stategate.runtime.check.recording import Keyframe, Recording, Step
from stategate.runtime.keep.journal import NAME

_FEWEST = 32  # steps of an episode that is worth a file


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was written."""

    files: tuple[Path, ...]  # in the order of their names
    steps: int
    problems: tuple[str, ...]  # what cannot be read, each with its robot


def fleet_episodes(
    folders: Sequence[str | Path], bundle: str | Path | Bundle, out: str | Path
) -> Recorded:
    """Write the inputs of all black boxes of one bundle as episodes.

    The memory begins anew in each, as calibration begins it. One ends where steps are missing, or
    something other than a step changed the memory. Its name is the digest of its content: what is
    brought home twice is one file.

    Args:
        folders: As `collect` takes them.
        bundle: That was recorded.
        out: Folder of the episodes.
    """
    opened, files, steps, problems = Bundle.open(bundle), dict[Path, int](), 0, list[str]()
    make_folder(Path(out))
    for robot, folder in robots_in([Path(one) for one in folders]).items():
        for path in sources_in(folder):
            if path.suffix in (".jsonl", ".snap") or path.name in ("installed", NAME):
                continue
            try:
                for content, count in _episodes(path, opened, f"{robot}/{path.name}"):
                    file = Path(out) / f"{sha256(content)[:20]}.npz"
                    if file not in files:
                        write_whole(file, content)
                    files[file] = count
            except (StategateError, OSError) as problem:
                why = problem.reason if isinstance(problem, StategateError) else str(problem)
                problems.append(f"{robot}: {why}")
    if strays := sorted(set(Path(out).glob("*.npz")) - set(files)):
        raise ResultError(
            f"{out} holds episodes that are not of these robots",
            found=strays[0].name,
            remedy="give another --out; calibration would take them all",
        )
    if not files:
        raise EpisodeError(
            "no black box holds enough steps of this bundle",
            found="; ".join(problems[:3]) or "no black box at all",
            expected=f"{_FEWEST} steps without a gap",
        )
    steps = sum(files.values())
    return Recorded(tuple(sorted(files)), steps, tuple(problems))


def _episodes(path: Path, bundle: Bundle, provenance: str) -> list[tuple[bytes, int]]:
    recording = Recording(path)
    recording.check_bundle(bundle)
    manifest = bundle.manifest
    rate = manifest.observation.rate_hz if manifest.observation else None
    episodes, stretch = list[tuple[bytes, int]](), list[Step]()

    def end() -> None:
        if len(stretch) >= _FEWEST:
            inputs = {
                spec.name: np.stack([step.inputs[spec.name] for step in stretch])
                for spec in manifest.inputs
            }
            words = f"{provenance}, steps {stretch[0].step} to {stretch[-1].step}"
            episode = Episode(inputs, rate_hz=rate, provenance=words)
            episodes.append((episode.to_bytes(), len(stretch)))
        stretch.clear()

    for event in recording.events(manifest):
        if isinstance(event, Step) and not (event.failed or event.skipped):
            stretch.append(event)
        elif isinstance(event, Keyframe) and not event.is_jump:
            continue
        else:
            end()
    end()
    return episodes
