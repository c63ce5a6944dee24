"""A session in C whose caller makes mistakes: each has a name, and changes nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from stategate.common.compiler import MATHS, WARNINGS
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.export.c.lower import source_of
from stategate.export.frontends.trace import trace
from stategate.models.step import StepResult

pytestmark = [
    pytest.mark.case("E15"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]


class Held(nn.Module):
    """Holds what it saw, and whether it ever was large."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def step_spec(self) -> StepSpec:
        shape = (1, self.width)
        return StepSpec(
            inputs=(TensorSpec("x", shape),),
            outputs=(TensorSpec("y", shape),),
            states=(StateSpec("s", shape), StateSpec("seen", (1, 1), "bool")),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        s = 0.5 * states["s"] + inputs["x"]
        seen = states["seen"] | (inputs["x"].amax(1, keepdim=True) > 100.0)
        return StepResult({"y": s + seen}, {"s": s, "seen": seen}, {})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """C source of the step of some width."""

    def written(width: int) -> Path:
        model = Held(width)
        folder = tmp_path_factory.mktemp("source")
        graph = trace(model).SerializeToString()
        for name, raw in source_of(graph, model.step_spec(), {}).files.items():
            (folder / name).write_bytes(raw)
        return folder

    return written


START = """
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "stategate.h"
static stategate_session s;
static stategate_inputs in;
static stategate_outputs out;
static int wrong;
static void expect(int line, long found, long right)
{
    if (found != right) {
        printf("line %d: %ld and not %ld\\n", line, found, right);
        wrong = 1;
    }
}
#define EXPECT(found, right) expect(__LINE__, (long)(found), (long)(right))
"""
# Checksum of ISO-HDLC, as zlib has it.
SEALED = """
static unsigned char save[STATEGATE_SAVED_BYTES];
static const int name[] = {
    STATEGATE_NO_POINTER, STATEGATE_UNALIGNED, STATEGATE_NOT_READY, STATEGATE_OTHER_MODEL,
    STATEGATE_DAMAGED, STATEGATE_IMPOSSIBLE};
static void seal_again(void)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < sizeof save - 4; ++i) {
        crc ^= save[i];
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    crc = ~crc;
    memcpy(save + sizeof save - 4, &crc, 4);
}
static void put(size_t at, const void *value, size_t bytes)
{
    EXPECT(stategate_save(&s, save, sizeof save), sizeof save);
    memcpy(save + at, value, bytes);
    seal_again();
}
"""
MISTAKES = """
int main(void)
{
    static unsigned char room[sizeof s + 128];
    stategate_session *askew = (void *)(((uintptr_t)room + 63) / 64 * 64 + 4);
    for (int i = 0; i < 6; ++i) {
        EXPECT(name[i] < 0, 1);
    }
    EXPECT(stategate_step(&s, &in, &out), STATEGATE_NOT_READY);
    EXPECT(stategate_reset(&s), STATEGATE_NOT_READY);
    EXPECT(stategate_save(&s, save, sizeof save), 0);
    EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_NOT_READY);
    EXPECT(stategate_init(NULL), STATEGATE_NO_POINTER);
    EXPECT(stategate_init(askew), STATEGATE_UNALIGNED);
    EXPECT(stategate_step(askew, &in, &out), STATEGATE_UNALIGNED);
    EXPECT(stategate_init(&s), STATEGATE_OK);
    EXPECT(stategate_step(NULL, &in, &out), STATEGATE_NO_POINTER);
    EXPECT(stategate_step(&s, NULL, &out), STATEGATE_NO_POINTER);
    EXPECT(stategate_step(&s, &in, NULL), STATEGATE_NO_POINTER);
    EXPECT(stategate_step(&s, (void *)((char *)&in + 4), &out), STATEGATE_UNALIGNED);
    EXPECT(stategate_reset(NULL), STATEGATE_NO_POINTER);
    EXPECT(stategate_save(NULL, save, sizeof save), 0);
    EXPECT(stategate_save(&s, NULL, sizeof save), 0);
    EXPECT(stategate_load(&s, NULL, sizeof save), STATEGATE_NO_POINTER);
    EXPECT(s.counters.steps, 0);
    in.x[0] = 3.0f;
    EXPECT(stategate_step(&s, &in, &out), STATEGATE_WROTE);
    const float nan = nanf(""), large = 7.0f;
    const unsigned char no_bool = 2;
    const uint64_t many = UINT64_MAX;
    const size_t counters = sizeof STATEGATE_TAG, states = counters + sizeof s.counters;
    put(states, &nan, sizeof nan);
    EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_IMPOSSIBLE);
    put(states + STATEGATE_STATE_BYTES - 1, &no_bool, 1);
    EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_IMPOSSIBLE);
    for (size_t i = 0; i < 6; ++i) { /* all but resets */
        put(counters + 8 * i, &many, sizeof many);
        EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_IMPOSSIBLE);
    }
    put(0, "another", 7);
    EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_OTHER_MODEL);
    put(states, &large, sizeof large);
    save[states] ^= 1;
    EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_DAMAGED);
    EXPECT(stategate_load(&s, save, sizeof save - 1), STATEGATE_DAMAGED);
    memset(in.x, 0, sizeof in.x);
    EXPECT(stategate_step(&s, &in, &out), STATEGATE_WROTE);
    EXPECT(out.y[0] * 2, 3); /* nothing of all that was taken */
    put(states, &large, sizeof large);
    EXPECT(stategate_load(&s, save, sizeof save), STATEGATE_OK);
    EXPECT(stategate_step(&s, &in, &out), STATEGATE_WROTE);
    EXPECT(out.y[0] * 2, 7);
    EXPECT(s.counters.steps, 3);
    return wrong;
}
"""
ANOTHERS = """
int main(void)
{
    EXPECT(stategate_init(&s), STATEGATE_OTHER_MODEL);
    EXPECT(stategate_step(&s, &in, &out), STATEGATE_NOT_READY);
    return wrong;
}
"""
SILENCE = """
#include <float.h>
int main(void)
{
    float smallest = 1.0f;
    EXPECT(stategate_init(&s), STATEGATE_OK);
    in.x[0] = in.x[1] = -1.5f;
    EXPECT(stategate_step(&s, &in, &out), STATEGATE_WROTE);
    memset(in.x, 0, sizeof in.x);
    for (int i = 0; i < 200; ++i) {
        EXPECT(stategate_step(&s, &in, &out), STATEGATE_WROTE);
        for (int bank = 0; bank < 2; ++bank) {
            const float held = fabsf(s.bank[bank].s[0]);
            smallest = held != 0.0f && held < smallest ? held : smallest;
        }
    }
    EXPECT(smallest >= 0x1p-100f && smallest < 0x1p-98f, 1);
    EXPECT(s.bank[0].s[0] == 0.0f && s.bank[1].s[0] == 0.0f, 1);
    volatile float half = FLT_MIN;
    half *= 0.5f;
    EXPECT(half != 0.0f, 1); /* the caller computes as before */
    return wrong;
}
"""


def run(folder: Path, header: Path, sources: Path, text: str, cc: str = "cc", *words: str) -> None:
    (folder / "main.c").write_text(START + text)
    flags = ["-std=gnu11", "-O2", *MATHS, *WARNINGS, "-Werror", *words]
    main = [cc, *flags, f"-I{header}", "-c", str(folder / "main.c"), "-o", str(folder / "main.o")]
    parts = [str(path) for path in sorted(sources.glob("*.c"))]
    all_ = [cc, *flags, f"-I{sources}", f"-Wa,-I{sources}", str(folder / "main.o"), *parts, "-lm"]
    for command in (main, [*all_, "-o", str(folder / "program")]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    program = [str(folder / "program")]
    emulator = ["qemu-aarch64"] if cc.startswith("aarch64") else []
    done = subprocess.run([*emulator, *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_mistake_of_a_caller_has_a_name_and_changes_nothing(
    tmp_path: Path, sources: Callable[[int], Path]
) -> None:
    folder = sources(4)
    run(tmp_path, folder, folder, SEALED + MISTAKES, "cc", "-fsanitize=address,undefined")


@pytest.mark.slow
@pytest.mark.corners("2")
@pytest.mark.parametrize("width", [2, 4096])
def test_a_library_refuses_the_header_of_another_bundle_and_writes_nothing_beyond_it(
    tmp_path: Path, sources: Callable[[int], Path], width: int
) -> None:
    run(tmp_path, sources(width), sources(64), ANOTHERS, "cc", "-fsanitize=address,undefined")


@pytest.mark.slow
@pytest.mark.case("A6")
@pytest.mark.parametrize("cc", ["cc", "aarch64-linux-gnu-gcc"])
def test_a_silent_session_in_c_ends_at_zero_and_never_holds_a_subnormal_number(
    tmp_path: Path, sources: Callable[[int], Path], cc: str
) -> None:
    if shutil.which(cc) is None or (cc != "cc" and shutil.which("qemu-aarch64") is None):
        pytest.skip(f"no {cc}, or nothing that runs its programs: see make test-aarch64")
    folder = sources(4)
    run(tmp_path, folder, folder, SILENCE, cc, *(["-static"] if cc != "cc" else []))
