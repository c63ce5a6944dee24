"""Which statements, branches and conditions of the C the self-test reaches, by clang-19."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.builds import PLAIN, checked

SELF_TEST = Path(__file__).parents[2] / "docs/examples/self_test.c"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of the functions that a program of the bundle holds; those that nobody calls are no code.

    Attributes:
        statements: Percent of the regions without a branch that were run.
        branches: Percent of the ways out of a branch that were taken.
        mcdc: Percent of conditions that were shown to decide by themselves.
        missed: File, line and column of what was not reached.
        checks: What the self-test printed last.
    """

    statements: float
    branches: float
    mcdc: float
    missed: list[str]
    checks: str


def coverage(sources: Sequence[Path], inputs: bytes) -> Coverage:
    """Compile a session with the self-test, run it, and see what was reached."""
    folder = sources[0].parent
    program, raw, data = folder / "self_test", folder / "profile.raw", folder / "profile.data"
    words = ["clang-19", "-std=c99", "-O0", PLAIN, "-ffp-contract=off", f"-I{folder}"]
    words += ["-fprofile-instr-generate", "-fcoverage-mapping", "-fcoverage-mcdc"]
    checked(
        [*words, *map(str, (SELF_TEST, *sources, folder / "weights.c")), "-lm", "-o", str(program)]
    )
    printed = checked(["env", f"LLVM_PROFILE_FILE={raw}", str(program)], inputs).stdout.decode()
    checked(["llvm-profdata-19", "merge", "-sparse", str(raw), "-o", str(data)])
    exported = checked(["llvm-cov-19", "export", str(program), f"-instr-profile={data}"])
    functions_present = {
        line.split()[-1] for line in checked(["nm", str(program)]).stdout.decode().splitlines()
    }
    functions = json.loads(exported.stdout)["data"][0]["functions"]
    # A function of a header is there once for each source that calls it: what one reaches counts.
    regions: dict[Any, bool] = {}
    branches: dict[Any, bool] = {}
    conditions: dict[Any, bool] = {}
    for function in functions:
        files = [Path(name).name for name in function["filenames"]]
        if files[0] == SELF_TEST.name or function["name"].split(":")[-1] not in functions_present:
            continue
        for line, column, _, _, count, file, _, kind in function["regions"]:
            if kind == 0:
                _mark(regions, (files[file], line, column), count > 0)
        for line, column, _, _, yes, no, file, *_ in function["branches"]:
            _mark(branches, (files[file], line, column, "taken"), yes > 0)
            _mark(branches, (files[file], line, column, "not taken"), no > 0)
        for line, column, _, _, file, *_, shown in function.get("mcdc_records", ()):
            for place, is_shown in enumerate(shown, 1):
                _mark(conditions, (files[file], line, column, f"condition {place}"), is_shown)
    missed = [
        f"{name}:{line}:{column}{': ' if what else ''}{' '.join(what)}"
        for (name, line, column, *what), reached in sorted(
            [*regions.items(), *branches.items(), *conditions.items()], key=lambda one: one[0][:3]
        )
        if not reached
    ]
    return Coverage(
        _percent(regions),
        _percent(branches),
        _percent(conditions),
        missed,
        printed.splitlines()[-1],
    )


def _mark(reached: dict[Any, bool], place: tuple[object, ...], is_reached: bool) -> None:
    reached[place] = reached.get(place, False) or is_reached


def _percent(reached: dict[Any, bool]) -> float:
    return round(100 * sum(reached.values()) / max(1, len(reached)), 1)
