"""What a CPU can do beyond the least of its kind: what this one has, and what a compiler used.

Both in the words of ``/proc/cpuinfo``, so that one can be held against the other.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
from collections.abc import Set
from functools import cache

# Leaf and sub-leaf, register (eax, ebx, ecx, edx), then bit and name. Intel SDM volume 2A, CPUID;
# AMD64 APM volume 3, appendix E.
_LEAVES = {
    (0x1, 0, 2): "0:pni 9:ssse3 12:fma 13:cx16 19:sse4_1 20:sse4_2 22:movbe 23:popcnt 28:avx"
    " 29:f16c",
    (0x7, 0, 1): "3:bmi1 5:avx2 8:bmi2 16:avx512f 17:avx512dq 21:avx512ifma 26:avx512pf"
    " 27:avx512er 28:avx512cd 30:avx512bw 31:avx512vl",
    (0x7, 0, 2): "1:avx512vbmi 6:avx512_vbmi2 8:gfni 9:vaes 10:vpclmulqdq 11:avx512_vnni"
    " 12:avx512_bitalg 14:avx512_vpopcntdq",
    (0x7, 0, 3): "8:avx512_vp2intersect 23:avx512_fp16",
    (0x7, 1, 0): "4:avx_vnni 5:avx512_bf16",
    (0x80000001, 0, 2): "0:lahf_lm 5:abm 6:sse4a 8:3dnowprefetch 11:xop 15:lwp 16:fma4 21:tbm",
}  # fmt: skip
_OSXSAVE = 27  # bit of leaf 1, ecx: xgetbv is there
_AVX, _AVX512 = 0x6, 0xE6  # bits of xgetbv: which registers the system saves
# What lives in the registers of AVX though its name does not begin so.
_IN_AVX = {"f16c", "fma", "fma4", "vaes", "vpclmulqdq", "xop"}
# push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; mov [r8], eax; mov [r8+4], ebx;
# mov [r8+8], ecx; mov [r8+12], edx; pop rbx; ret
_CPUID = bytes.fromhex("5389f889f14989d00fa241890041895804418948084189500c5bc3")
_XGETBV = bytes.fromhex("31c90f01d0c3")  # xor ecx, ecx; xgetbv; ret
# Entries 16 and 26 of the vector; Linux, arch/arm64/include/uapi/asm/hwcap.h.
_HWCAPS = {
    16: "0:fp 1:asimd 3:aes 4:pmull 5:sha1 6:sha2 7:crc32 8:atomics 9:fphp 10:asimdhp 12:asimdrdm"
    " 13:jscvt 14:fcma 15:lrcpc 17:sha3 18:sm3 19:sm4 20:asimddp 21:sha512 22:sve 23:asimdfhm",
    26: "1:sve2 8:frint 9:svei8mm 12:svebf16 13:i8mm 14:bf16",
}


def features_of_cpu() -> frozenset[str] | None:
    """Features that this CPU has and this system lets be used; None where neither tells.

    For services that do not see ``/proc/cpuinfo`` (systemd's ``ProcSubset=pid``): on x86-64 cpuid
    is asked, and xgetbv for the registers that the system saves; on aarch64 the auxiliary vector.
    """
    try:
        if platform.machine() == "x86_64":
            return _by_cpuid()
        if platform.machine() == "aarch64":
            getauxval = ctypes.CDLL(None).getauxval
            getauxval.restype = ctypes.c_ulong
            entries = {key: getauxval(ctypes.c_ulong(key)) for key in _HWCAPS}
            return frozenset().union(*(_names(v, _HWCAPS[key]) for key, v in entries.items()))
    except (AttributeError, OSError):  # no such function, or no memory that may hold code
        pass
    return None


def _names(value: int, table: str) -> frozenset[str]:
    bits = (word.partition(":") for word in table.split())
    return frozenset(name for bit, _, name in bits if value >> int(bit) & 1)


def _by_cpuid() -> frozenset[str]:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_CPUID + _XGETBV)
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    registers = (ctypes.c_uint32 * 4)()
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(start)

    def leaf(number: int, part: int) -> list[int]:
        call(number, part, registers)
        return list(registers)

    features: set[str] = set()
    for (number, part, register), table in _LEAVES.items():
        if leaf(number & 0x80000000, 0)[0] >= number:  # the highest leaf that there is
            features |= _names(leaf(number, part)[register], table)
    saved = 0
    if leaf(1, 0)[2] >> _OSXSAVE & 1:
        saved = ctypes.CFUNCTYPE(ctypes.c_uint32)(start + len(_CPUID))()
    if saved & _AVX512 != _AVX512:
        features = {name for name in features if not name.startswith("avx512")}
    if saved & _AVX != _AVX:
        features = {name for name in features if not name.startswith("avx")} - _IN_AVX
    return frozenset(features)


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
    """What this CPU has, as the kernel lists it or the CPU says itself; None where neither does."""
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            listed = next((x for x in lines if re.match(r"flags|Features", x)), "")
    except OSError:
        listed = ""
    return frozenset(listed.partition(":")[2].split()) or features_of_cpu()


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
