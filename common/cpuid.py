"""What a CPU says of itself, in the kernel's words, for where ``/proc/cpuinfo`` is hidden.

Services are often started so (systemd's ``ProcSubset=pid``). On x86-64 the instruction ``cpuid`` is
asked, and ``xgetbv`` for the registers that the system saves; on aarch64 the kernel's auxiliary
vector. Only features are known that a compiler uses by itself, see `stategate.common.cpu`.
"""

from __future__ import annotations

import ctypes
import mmap
import platform

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
    """Features that this CPU has and this system lets be used; None where neither tells."""
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
