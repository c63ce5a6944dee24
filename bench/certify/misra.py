"""Required and mandatory rules of MISRA C:2012, by cppcheck's addon; and compilers' warnings."""

from __future__ import annotations

import re
from collections import Counter

from stategate.bench.certify.builds import PLAIN, checked
from stategate.bench.certify.case import Case, words_of

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
_FINDING = re.compile(r"^([^|]+)\|(\d+)\|(\d+)\|misra-c2012-([\d.]+)$", re.MULTILINE)


def warnings(case: Case) -> None:
    """What compilers say of the plain form, as C99."""
    requirement = "The C is C99 without extensions, and compilers have no warning"
    lines, used = [], []
    for compiler in ("gcc", "clang-19"):
        method = f"{compiler} -std=c99 {' '.join(WARNINGS)}, plain form"
        if case.lacks(requirement, method, compiler):
            continue
        words = [compiler, "-std=c99", "-O2", "-ffp-contract=off", PLAIN, *WARNINGS]
        complaints = []
        for source in case.sources:
            command = [*words, f"-I{source.parent}", "-c", str(source), "-o", "/dev/null"]
            code, printed = words_of(command, case.limit_s)
            complaints += [line for line in printed.splitlines() if "error" in line] if code else []
        finding = f"{len(complaints)} lines" if complaints else f"none in {len(case.sources)} files"
        text = "\n".join([" ".join(words), *complaints, finding, ""])
        name = {f"warnings_{compiler.split('-')[0]}_txt": text.replace(f"{case.scratch}/", "")}
        case.add(requirement, method, "open" if complaints else "shown", finding, **name)
        lines += complaints
        used.append(compiler)
    if used:
        case.figures["warnings"] = len(lines)


def misra(case: Case) -> None:
    """What cppcheck finds in the C of a session and its black box."""
    requirement = "No required or mandatory rule of MISRA C:2012 is broken"
    method = "cppcheck's addon, plain form, session and black box"
    if case.lacks(requirement, method, "cppcheck"):
        return
    findings = set()
    for source in case.sources:
        words = ["cppcheck", "--addon=misra", "--language=c", "--std=c99", "--quiet", PLAIN]
        words += [f"-D{meaning}" for meaning in _MEANINGS]
        words += [f"-I{source.parent}", "--template={file}|{line}|{column}|{id}", str(source)]
        findings |= set(_FINDING.findall(checked(words).stderr.decode()))
    required = sorted(one for one in findings if one[3] not in _ADVISORY)
    lines = [f"{f.rpartition('/')[2]}:{line}: rule {rule}" for f, line, _, rule in required]
    broken = [line for line, one in zip(lines, required, strict=True) if one[3] not in DEVIATIONS]
    count = Counter(rule for *_, rule in required if rule in DEVIATIONS)
    deviations = [f"rule {rule}, {count[rule]} times: {why}" for rule, why in DEVIATIONS.items()]
    text = "\n".join(["Deviations:", *deviations, "", "Findings:", *(broken or ["none"]), ""])
    text += "\n".join(
        ["", "Each place of a deviation:", *(x for x in lines if x not in broken), ""]
    )
    finding = f"{len(broken)} findings; deviations: " + ", ".join(
        f"{rule} ({n})" for rule, n in sorted(count.items())
    )
    case.add(requirement, method, "open" if broken else "shown", finding, misra_txt=text)
    case.figures["misra_required"] = len(broken)
