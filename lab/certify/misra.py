"""Required and mandatory rules of MISRA C:2012, by cppcheck's addon; and compilers' warnings."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lab.bits import WARNINGS
from lab.builds import PLAIN, checked

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
_COMPILERS = ("gcc", "clang-19")


def misra(sources: Sequence[Path]) -> tuple[list[str], dict[str, int]]:
    """What cppcheck finds in the C of a session.

    Returns:
        Findings of required and mandatory rules, a line each; and for each rule of `DEVIATIONS`
        how often it is broken.
    """
    findings = set()
    for source in sources:
        words = ["cppcheck", "--addon=misra", "--language=c", "--std=c99", "--quiet", PLAIN]
        words += [f"-D{meaning}" for meaning in _MEANINGS]
        words += [f"-I{source.parent}", "--template={file}|{line}|{column}|{id}", str(source)]
        findings |= set(_FINDING.findall(checked(words).stderr.decode()))
    required = sorted(one for one in findings if one[3] not in _ADVISORY)
    broken = [
        f"{Path(f).name}:{line}: rule {r}" for f, line, _, r in required if r not in DEVIATIONS
    ]
    deviating = Counter(rule for *_, rule in required if rule in DEVIATIONS)
    return broken, {rule: deviating[rule] for rule in DEVIATIONS}


def warnings(sources: Sequence[Path]) -> list[str]:
    """What compilers say of the plain form, as C99."""
    lines = []
    for compiler in _COMPILERS:
        for source in sources:
            words = [compiler, "-std=c99", "-O2", "-ffp-contract=off", PLAIN, *WARNINGS]
            done = subprocess.run(
                [*words, f"-I{source.parent}", "-c", str(source), "-o", "/dev/null"],
                capture_output=True,
                text=True,
            )
            lines += [f"{compiler}: {one}" for one in done.stderr.splitlines() if "error" in one]
    return lines
