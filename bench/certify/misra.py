"""Required and mandatory rules of MISRA C:2012, by cppcheck's addon; and compilers' warnings."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path

from stategate.bench.certify.builds import PLAIN, checked, ended
from stategate.bench.certify.case import Case, Finding

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
# Rules that MISRA C:2012 calls advisory; all others are required or mandatory.
_ADVISORY = frozenset(
    """2.3 2.4 2.5 2.6 2.7 4.2 5.9 8.7 8.9 8.11 8.13 10.5 11.4 11.5 12.1 12.3 12.4 13.3 13.4 15.1
    15.4 15.5 17.5 17.8 18.4 18.5 19.2 20.1 20.5 21.12""".split()  # noqa: SIM905
)
DEVIATIONS = {
    "2.2": "A macro is 1 in the plain form, the numbers of one vector, and larger in the others.",
    "11.6": "An address is taken as a number, to see whether it is aligned.",
    "21.15": "The bits of a number are read and made by memcpy, the one form that C defines.",
}
# What <stdint.h> says, which cppcheck does not read.
_MEANINGS = (
    "UINT64_C(x)=x##ULL",
    "INT64_MIN=(-9223372036854775807LL-1LL)",
    "__BYTE_ORDER__=1234",
    "__ORDER_LITTLE_ENDIAN__=1234",
)
_FINDING = re.compile(r"([^|]+)\|(\d+)\|\d+\|(\S+)")
# Breaks rule 7.1: a cppcheck that does not find it finds nothing else either.
_BROKEN = "extern int f(void);\nint f(void)\n{\n    return 017;\n}\n"


def warnings(case: Case) -> None:
    """What compilers say of the plain form, as C99."""
    for compiler in ("gcc", "clang-19"):
        case.ask(
            "The C is C99 without extensions, and compilers have no warning",
            f"{compiler} -std=c99 {' '.join(WARNINGS)}, plain form",
            partial(_complaints, case, compiler),
            compiler,
        )


def _complaints(case: Case, compiler: str) -> Finding:
    words = [compiler, "-std=c99", "-O2", "-ffp-contract=off", PLAIN, *WARNINGS]
    complaints: list[str] = []
    target = case.scratch / "warned.o"
    for source in case.sources:
        target.unlink(missing_ok=True)
        command = [*words, f"-I{source.parent}", "-c", str(source), "-o", str(target)]
        done = ended(command, limit_s=case.limit_s)
        if done.returncode:
            printed = done.stderr.decode(errors="replace").splitlines()
            named = [case.without_scratch(line) for line in printed if "error" in line]
            complaints += named or [f"{source.name}: it ended with {done.returncode}"]
        elif not target.is_file():
            raise RuntimeError(f"{compiler} compiled nothing of {source.name}")
    words_of_it = f"{len(complaints)} lines" if complaints else f"none in {len(case.sources)} files"
    text = "\n".join([" ".join(words), *complaints, words_of_it, ""])
    evidence = {f"warnings-{compiler.split('-')[0]}.txt": text}
    case.figures["warnings"] = (case.figures.get("warnings") or 0) + len(complaints)
    return "open" if complaints else "shown", words_of_it, evidence


def misra(case: Case) -> None:
    """What cppcheck finds in the C of a session and its black box."""
    case.ask(
        "No required or mandatory rule of MISRA C:2012 is broken",
        "cppcheck's addon, plain form, session and black box",
        lambda: _rules(case),
        "cppcheck",
    )


def _rules(case: Case) -> Finding:
    control = case.scratch / "broken_on_purpose.c"
    control.write_text(_BROKEN)
    if not any(rule == "7.1" for *_, rule in _cppcheck(case, control)):
        raise RuntimeError("cppcheck's addon does not find a rule that is broken on purpose")
    findings: set[tuple[str, str, str]] = set().union(*(_cppcheck(case, s) for s in case.sources))
    broken: list[str] = []
    places: list[str] = []
    count = Counter[str]()
    for file, line, rule in sorted(findings):
        if rule in _ADVISORY:
            continue
        words = f"{file.rpartition('/')[2]}:{line}: {'rule ' * rule[0].isdigit()}{rule}"
        (places if rule in DEVIATIONS else broken).append(words)
        count[rule] += rule in DEVIATIONS
    deviations = [f"rule {rule}, {count[rule]} times: {w}" for rule, w in DEVIATIONS.items()]
    text = ["Deviations:", *deviations, "", "Findings:", *(broken or ["none"]), ""]
    text += ["Each place of a deviation:", *places, ""]
    finding = f"{len(broken)} findings; deviations: "
    finding += ", ".join(f"{rule} ({n})" for rule, n in sorted((+count).items())) or "none"
    case.figures["misra_required"] = len(broken)
    return "open" if broken else "shown", finding, {"misra.txt": "\n".join(text)}


def _cppcheck(case: Case, source: Path) -> set[tuple[str, str, str]]:
    """File, line and rule of each finding; what cppcheck itself calls an error is one as well.

    Raises:
        RuntimeError: It failed, or wrote a line that is no finding.
    """
    words = ["cppcheck", "--addon=misra", "--language=c", "--std=c99", "--quiet", PLAIN]
    words += [f"-D{meaning}" for meaning in _MEANINGS]
    words += [f"-I{source.parent}", "--template={file}|{line}|{column}|{id}", str(source)]
    findings = set()
    for line in checked(words, limit_s=case.limit_s).stderr.decode(errors="replace").splitlines():
        if (finding := _FINDING.fullmatch(line)) is None:
            raise RuntimeError(f"cppcheck wrote {line[:200]!r} of {source.name}")
        findings.add((finding[1], finding[2], finding[3].removeprefix("misra-c2012-")))
    return findings
