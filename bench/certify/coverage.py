"""Which statements, branches and conditions of the C the self-test reaches, by clang-19."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stategate.bench.certify.builds import PLAIN, checked
from stategate.bench.certify.case import Case, Finding, Result

# What cannot be reached, by file and words of the line, and why; all else is a test to write.
_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"(read|write)\w*_\d+\.c",
        r"(if \(id\d+ >= 0 && |_Bool \w+_load\(|for \(int h = 0; h < \(seq_|int t = reverse ).*",
        "Written by emx-onnx-cgen for any padding, length and direction; numbers of this model "
        "decide it, and no input. Weights are constants, so nobody loads them.",
    ),
    (
        r"(read|write\d+)\.c",
        r"if \(is_backward\) \{ .*",
        "The plain form reads weights forward in every step: nothing in it waits for a cache.",
    ),
)
# Of emx-onnx-cgen's C too: an input says how long a sequence is, and so decides what depends on it.
_LENGTH = re.compile(r"\bseq_limit = \(int\)")


def coverage(case: Case, golden: bytes) -> None:
    """Compile a session with the self-test, run it, and see what was reached."""
    case.ask(
        "The self-test reaches every statement, branch and condition (MC/DC)",
        "clang-19's coverage of native/self_test.c, plain form without black box",
        lambda: _reached(case, golden),
        "clang-19", "llvm-profdata-19", "llvm-cov-19",
    )  # fmt: skip


def _reached(case: Case, golden: bytes) -> Finding:
    folder = case.sources[0].parent
    program, raw, data = folder / "self_test", folder / "profile.raw", folder / "profile.data"
    words = ["clang-19", "-std=c99", "-O0", PLAIN, "-ffp-contract=off", f"-I{folder}"]
    words += ["-fprofile-instr-generate", "-fcoverage-mapping", "-fcoverage-mcdc"]
    words += ["-DSTATEGATE_SELF_TEST", *map(str, sorted(folder.glob("*.c")))]
    checked([*words, "-lm", "-o", str(program)])
    checked(["env", f"LLVM_PROFILE_FILE={raw}", str(program)], golden, limit_s=case.limit_s)
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
        if files[0].startswith("self_test") or files[0] == "black_box.c":
            continue
        if function["name"].split(":")[-1] not in functions_present:
            continue
        for line, column, _, _, count, file, _, kind in function["regions"]:
            if kind == 0:
                _mark(regions, (files[file], line, column), count > 0)
        for line, column, _, _, yes, no, file, *_ in function["branches"]:
            _mark(branches, (files[file], line, column, "taken"), yes > 0)
            _mark(branches, (files[file], line, column, "not taken"), no > 0)
        for record in function.get("mcdc_records", ()):
            line, column, *_, shown = record
            name = _file_of(record, function["branches"], files)
            for place, is_shown in enumerate(shown, 1):
                _mark(conditions, (name, line, column, f"condition {place}"), is_shown)
    if not (regions and branches and conditions):
        raise RuntimeError("llvm-cov-19 names no statement, branch or condition")
    missed, unexplained = [], 0
    places = sorted(
        [*regions.items(), *branches.items(), *conditions.items()], key=lambda one: one[0][:3]
    )
    for (name, line, column, *what), reached in places:
        if not reached:
            source = (folder / name).read_text()
            text = source.splitlines()[line - 1].strip()
            why = _reason(name, text, source)
            unexplained += not why
            at = f"{name}:{line}:{column}{': ' if what else ''}{' '.join(what)}"
            missed.append(f"{at}\n    {text}\n    {why or 'no reason is known'}")
    named = {"statement": "statements", "branch": "branches", "mcdc": "MC/DC"}
    for kind, places_of in zip(named, (regions, branches, conditions), strict=True):
        share = round(100 * sum(places_of.values()) / len(places_of), 1)
        case.figures[f"{kind}_percent"] = share
    case.figures["missed_without_reason"] = unexplained
    finding = ", ".join(f"{n} {case.figures[f'{kind}_percent']} %" for kind, n in named.items())
    if missed:
        finding += f"; {len(missed)} places are not reached, {unexplained} of them without a reason"
    result: Result = ("open" if unexplained else "explained") if missed else "shown"
    return result, finding, {"coverage.txt": "\n".join([finding, "", *missed, ""])}


def _file_of(record: Sequence[Any], branches: Sequence[Sequence[Any]], files: list[str]) -> str:
    """The file of a decision: clang names the function's own, though a macro's lies elsewhere.

    A macro that a function uses twice is two files of the same name.
    """
    start, end = tuple(record[:2]), tuple(record[2:4])
    inside: set[str] = {files[one[6]] for one in branches if start <= tuple(one[:2]) <= end}
    return inside.pop() if len(inside) == 1 else files[record[4]]


def _reason(name: str, text: str, source: str) -> str:
    if "(seq_limit ?" in text and _LENGTH.search(source):
        return ""
    for file, words, why in _REASONS:
        if re.fullmatch(file, name) and re.fullmatch(words, text):
            return why
    return ""


def _mark(reached: dict[Any, bool], place: tuple[object, ...], is_reached: bool) -> None:
    reached[place] = reached.get(place, False) or is_reached
