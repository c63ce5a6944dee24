"""Every fuzzer for a share of the time; what breaks a door becomes a file to try again."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import click
import msgspec

from lab.attack.fuzz_door import DOORS, enter  # first: it counts branches of what it loads
from lab.attack.places import PLACE, Fuzzed
from stategate.contract.durable import write_whole

INPUT_SECONDS = 20  # of one input; the slowest right one takes a hundredth
RSS_MEGABYTES = 3000
_LEAST_SECONDS = 2
_RUNS = re.compile(r"^(?:Done |#)(\d+)", re.MULTILINE)


def fuzz_door(
    door: str, *, seed: int, place: Path, seconds: float = 0.0, inputs: int = -1
) -> Fuzzed:
    """Fuzz one door in a child of this process.

    Args:
        door: Its name.
        seed: Of chance; 0 draws one.
        place: Where inputs that reach new branches are kept, and those that break something.
        seconds: How long; loading comes on top. 0 for any time.
        inputs: How many; -1 for any number.
    """
    files, broken = place / door, place / f"{door}.broken"
    for folder in (files, broken):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(broken.iterdir())
    options = [
        f"-max_total_time={seconds and max(_LEAST_SECONDS, round(seconds))}",
        f"-runs={inputs}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={RSS_MEGABYTES}",
        f"-seed={seed}",
        f"-artifact_prefix={broken}/",
        str(files),
        str(PLACE / "corpus" / door),
    ]
    start, log = time.monotonic(), place / f"{door}.log"
    with log.open("wb") as file:
        child = os.fork()
        if child == 0:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            enter(door, options)  # does not come back
        _, status = os.waitpid(child, 0)
    text = log.read_text(errors="replace")
    counts = [int(count) for count in _RUNS.findall(text)]
    problems = [f"{file}: {_last_word(text)}" for file in set(broken.iterdir()) - before]
    if "Is the code instrumented" in text:
        problems.append(f"{door}: no branches are counted; the readers were loaded too early")
    if not any(counts):
        problems.append(f"{door}: no file was tried")
    if status != 0 and not problems:
        problems = [f"{door} ended with status {status}: {text[-800:]}"]
    elapsed = time.monotonic() - start
    return Fuzzed(door, max(counts, default=0), elapsed, tuple(problems))


def _last_word(text: str) -> str:
    """What Python or libFuzzer says went wrong."""
    lines = [
        line for line in text.splitlines() if re.match(r"[\w.]*(Error|Broken|Exception)\b", line)
    ]
    libfuzzer = [line for line in text.splitlines() if "ERROR: libFuzzer" in line]
    return (lines or libfuzzer or [text[-200:]])[-1][:300]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(DOORS)))
@click.option("--seconds", default=60.0, show_default=True, help="For all of them together.")
@click.option("--hours", type=float, help="The same, in hours.")
@click.option("--seed", default=0, help="Of chance; 0 draws one.")
@click.option("--inputs", default=-1, help="For each of them, in place of a time.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/fuzz"))
def fuzz(
    names: tuple[str, ...],
    seconds: float,
    hours: float | None,
    seed: int,
    inputs: int,
    out: Path,
) -> None:
    """Fuzz every place where a file of a stranger comes in, or those that are NAMED."""
    chosen = names or tuple(DOORS)
    share = (seconds if hours is None else 3600 * hours) / len(chosen)
    share = share if inputs < 0 else 0.0
    broken: list[str] = []
    results = []
    for name in chosen:
        result = fuzz_door(name, seed=seed, place=out.absolute(), seconds=share, inputs=inputs)
        results.append(result)
        words = f"{result.tried:,} inputs in {result.seconds:.0f} s"
        click.echo(f"{name}: {words}, {len(result.broken)} broke it")
        broken += result.broken
    write_whole(out / "fuzz.json", msgspec.json.encode(results))
    for line in broken:
        click.echo(line)
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":  # and not a verb of lab, whose group loads some of the readers
    fuzz()
