"""What a CPU can do beyond the least of its kind: what this one has, and what a compiler used.

Both in the words of ``/proc/cpuinfo``, so that one can be held against the other.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Set
from functools import cache

# x86-64 psABI, micro-architecture levels: what each needs beyond the one before, as Linux spells
# it. gcc takes the level's name for -march.
_X86_LEVELS = {
    "x86-64": frozenset[str](),
    "x86-64-v2": frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    "x86-64-v3": frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    "x86-64-v4": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
}
# What every CPU of a kind has, in the compiler's words.
LEAST = {
    "x86_64": "x86-64",
    "aarch64": "armv8-a",
    "armv7l": "armv7-a+fp",
    "riscv64": "rv64gc",
}
# Macro that gcc and clang define where they may use a feature, and the kernel's name of it; only
# what they use by themselves. Sources: gcc's i386-c.cc, the Arm C Language Extensions, and
# arch/x86/include/asm/cpufeatures.h and Documentation/arch/arm64/elf_hwcaps.rst of Linux.
_X86 = (
    "AVX AVX2 AVX512BW AVX512CD AVX512DQ AVX512ER AVX512F AVX512IFMA AVX512PF AVX512VBMI AVX512VL"
    " BMI2 F16C FMA FMA4 GFNI LWP MOVBE POPCNT SSE4A SSE4_1 SSE4_2 SSSE3 TBM VAES VPCLMULQDQ XOP"
    " AVX512BF16:avx512_bf16 AVX512BITALG:avx512_bitalg AVX512FP16:avx512_fp16"
    " AVX512VBMI2:avx512_vbmi2 AVX512VNNI:avx512_vnni AVX512VP2INTERSECT:avx512_vp2intersect"
    " AVX512VPOPCNTDQ:avx512_vpopcntdq AVXVNNI:avx_vnni BMI:bmi1 LAHF_SAHF:lahf_lm LZCNT:abm"
    " PRFCHW:3dnowprefetch SSE3:pni"
)
_ARM = (
    "ATOMICS BF16 BF16_SCALAR_ARITHMETIC:bf16 BF16_VECTOR_ARITHMETIC:bf16 COMPLEX:fcma CRC32"
    " DOTPROD:asimddp FMA:vfpv4 FP16_FML:asimdfhm FP16_SCALAR_ARITHMETIC:fphp"
    " FP16_VECTOR_ARITHMETIC:asimdhp FRINT IDIV:idiva JCVT:jscvt MATMUL_INT8:i8mm QRDMX:asimdrdm"
    " RCPC:lrcpc SVE SVE2 SVE_BF16:svebf16 SVE_MATMUL_INT8:svei8mm SVE_VECTOR_OPERATORS:sve"
)
_FEATURES = {
    form.format(macro): name or macro.lower()
    for form, words in (("__{}__", _X86), ("__ARM_FEATURE_{}", _ARM), ("__ARM_{}", "NEON"))
    for macro, _, name in (word.partition(":") for word in words.split())
}
# One of these that is not known keeps its own name, which no kernel lists: better refused than
# stopped at an instruction that is not there.
_SUSPECT = re.compile(r"__(AVX|APX|ARM_FEATURE_S[VM]E|riscv_)")


@cache
def features() -> frozenset[str] | None:
    """What this CPU has, as the kernel lists it; None where that is hidden."""
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            listed = next((x for x in lines if re.match(r"flags|Features", x)), "")
    except OSError:
        listed = ""
    return frozenset(listed.partition(":")[2].split()) or None


def isa_of_this_machine() -> str | None:
    """The best instruction set of this CPU that has a portable name; None for an unknown kind."""
    best = LEAST.get(platform.machine())
    if best != "x86-64":
        return best
    for level, needed in _X86_LEVELS.items():
        if not needed <= (features() or frozenset()):
            break
        best = level
    return best


def used(macros: Set[str], least: Set[str]) -> tuple[str, ...]:
    """Features that a compiler may use beyond the least of its CPU's kind."""
    more = macros - least
    names = {_FEATURES[macro] for macro in more & _FEATURES.keys()}
    return tuple(sorted(names | {m for m in more - _FEATURES.keys() if _SUSPECT.match(m)}))
