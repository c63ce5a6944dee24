"""A program in C records its steps, and Python steps them again to the same bits."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import stategate
from stategate import Bundle
from stategate.bench.certify.builds import write_weights

ROBOT = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "stategate_black_box.h"

static bool put(void *user, uint64_t at, const void *data, size_t bytes)
{
    FILE *file = user;
    return fseek(file, (long)at, SEEK_SET) == 0 && fwrite(data, 1, bytes, file) == bytes
        && fflush(file) == 0;
}

static bool get(void *user, uint64_t at, void *data, size_t bytes)
{
    FILE *file = user;
    return fseek(file, (long)at, SEEK_SET) == 0 && fread(data, 1, bytes, file) == bytes;
}

static bool may_write(void *user) { return (++*(int *)user / 50) % 2 == 0; }

static stategate_session session;
static stategate_black_box box;

/* robot BOX INPUTS BYTES [hook] : one life, killed without an end */
int main(int argc, char **argv)
{
    const uint64_t bytes = strtoull(argv[3], NULL, 10);
    FILE *file = fopen(argv[1], "r+b"), *inputs = fopen(argv[2], "rb");
    int asked = 0, steps = 0;
    file = file != NULL ? file : fopen(argv[1], "w+b");
    if (file == NULL || inputs == NULL || stategate_init(&session) != STATEGATE_OK) {
        return 2;
    }
    if (argc > 4) {
        session.may_write = may_write;
        session.user = &asked;
    }
    box = (stategate_black_box){.write = put, .read = get, .user = file, .unix_ns = 7};
    stategate_box_result opened = stategate_black_box_open(&box, bytes);
    if (opened == STATEGATE_BOX_FAILED || opened == STATEGATE_BOX_NONE) {
        opened = stategate_black_box_create(&box, bytes, 5);
    }
    if (opened != STATEGATE_BOX_OK) {
        printf("%d\n", opened);
        return 1;
    }
    stategate_inputs in;
    stategate_outputs out;
    while (fread(in.FIRST, sizeof in.FIRST, 1, inputs) == 1) {
        const stategate_result result = stategate_black_box_step(&box, &session, &in, &out);
        if (result < 0 && result != STATEGATE_FAULT && result != STATEGATE_BAD_OUTPUT) {
            continue;
        }
        if (++steps == 333) {
            (void)stategate_reset(&session);
        }
    }
    printf("%llu %llu %.9g\n", (unsigned long long)box.step,
        (unsigned long long)session.counters.writes, (double)*(const float *)&out);
    fflush(stdout);
    _Exit(0); /* what is in the last block is lost */
}
"""


# A session of the test's own, whose steps give the answers that the test names.
HEADER = r"""
#ifndef STATEGATE_H
#define STATEGATE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#define STATEGATE_ALIGNED
#define STATEGATE_API
#define STATEGATE_TAG "tiny 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
typedef enum {
    STATEGATE_QUIET = 0, STATEGATE_WROTE = 1, STATEGATE_HELD = 2,
    STATEGATE_BAD_INPUT = -1, STATEGATE_FAULT = -2, STATEGATE_BAD_OUTPUT = -3
} stategate_result;
typedef struct { float x[INPUTS]; } stategate_inputs;
typedef struct { float y[1]; } stategate_outputs;
typedef struct { float m[STATES]; } stategate_states;
typedef struct {
    stategate_states bank[2];
    uint64_t parity, chain;
    bool (*may_write)(void *user);
    void *user;
} stategate_session;
stategate_result stategate_step(
    stategate_session *s, const stategate_inputs *in, stategate_outputs *out);
uint64_t stategate_chain(const stategate_session *s, uint64_t before);
#endif
"""
CHECKS = r"""
#include <stdio.h>
#include <string.h>
#include "stategate_black_box.h"
#include "stategate_model.h"
#define CHECK(what) (void)((what) || (printf("line %d: %s\n", __LINE__, #what), ++wrong))
#define BLOCK STATEGATE_BOX_BLOCK
#define BLOCKS 200u
static int wrong;
static unsigned char flash[(BLOCKS + 1u) * BLOCK];
static int writes_left = -1, reads_left = -1; /* until one fails; -1 for never */
static stategate_result answer;
static stategate_session s;
static stategate_inputs in;
static stategate_outputs out;
static stategate_black_box box;
static const stategate_tensor input = {0, sizeof in, STATEGATE_FLOAT32, 0, NULL, 0};
static const stategate_tensor state = {0, sizeof s.bank[0], STATEGATE_FLOAT32, 0, NULL, 0};
const stategate_model stategate_this_model = {
    .inputs = &input, .states = &state, .n_inputs = 1, .n_states = 1};

stategate_result stategate_step(
    stategate_session *t, const stategate_inputs *i, stategate_outputs *o)
{
    (void)i, (void)o;
    t->chain += answer >= 0;
    return answer == STATEGATE_WROTE && !t->may_write(t->user) ? STATEGATE_HELD : answer;
}
uint64_t stategate_chain(const stategate_session *t, uint64_t before)
{
    return t->chain == 0u ? before : t->chain + (before << 8);
}
static bool put(void *user, uint64_t at, const void *data, size_t bytes)
{
    (void)user;
    if (at + bytes > sizeof flash || writes_left == 0) { return false; }
    writes_left -= writes_left > 0;
    (void)memcpy(flash + at, data, bytes);
    return true;
}
static bool get(void *user, uint64_t at, void *data, size_t bytes)
{
    (void)user;
    if (at + bytes > sizeof flash || reads_left == 0) { return false; }
    reads_left -= reads_left > 0;
    (void)memcpy(data, flash + at, bytes);
    return true;
}
static bool refuses(void *user) { return *(bool *)user; }
static uint64_t steps(int count, stategate_result result)
{
    answer = result;
    for (int i = 0; i < count; ++i) {
        CHECK(stategate_black_box_step(&box, &s, &in, &out) == result);
    }
    return box.step;
}
static void seal(unsigned char *block, size_t from, size_t sum_at)
{
    uint32_t crc = 0xFFFFFFFFu;
    const size_t end = from == 0u ? BLOCK - 4u : BLOCK;
    for (size_t i = from; i < end; ++i) {
        crc ^= block[i];
        for (int bit = 0; bit < 8; ++bit) { crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u))); }
    }
    crc = ~crc;
    (void)memcpy(block + sum_at, &crc, 4);
}
int main(void)
{
    const uint64_t all = sizeof flash;
    bool may = false;
    box.write = put;
    box.read = get;
    s.chain = 7u;
    for (int i = 0; i < 2; ++i) {
        stategate_box_result (*open)(stategate_black_box *, uint64_t) = stategate_black_box_open;
        CHECK(open(&box, i * (BLOCK - 1u)) == STATEGATE_BOX_TOO_SMALL);
        CHECK(open(&box, UINT64_MAX) == STATEGATE_BOX_TOO_SMALL);
        CHECK(stategate_black_box_create(&box, 2u * BLOCK, 1) == STATEGATE_BOX_TOO_SMALL);
        writes_left = i;
        CHECK(stategate_black_box_create(&box, all, 1) == STATEGATE_BOX_FAILED);
    }
    writes_left = -1;
    CHECK(stategate_black_box_flush(&box) == STATEGATE_BOX_OK); /* it is not open */
    CHECK(steps(2, STATEGATE_QUIET) == 0u);
    (void)memset(flash, 0, sizeof flash);
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_NONE);
    CHECK(stategate_black_box_create(&box, all, 1) == STATEGATE_BOX_OK);
    CHECK(stategate_black_box_flush(&box) == STATEGATE_BOX_OK); /* nothing is in it */
    s.chain = 0u;
    answer = STATEGATE_BAD_INPUT;
    CHECK(stategate_black_box_step(&box, &s, &in, &out) == STATEGATE_BAD_INPUT);
    s.chain = 1u;
    CHECK(stategate_chain(&s, 0u) == 1u);
    CHECK(steps(3, STATEGATE_WROTE) == 3u && steps(1, STATEGATE_HELD) == 4u);
    CHECK(steps(1, STATEGATE_FAULT) == 5u && steps(1, STATEGATE_BAD_OUTPUT) == 6u);
    CHECK(steps(2, STATEGATE_BAD_INPUT) == 6u);
    s.may_write = refuses;
    s.user = &may;
    answer = STATEGATE_WROTE;
    CHECK(stategate_black_box_step(&box, &s, &in, &out) == STATEGATE_HELD && !box.allowed);
    may = true;
    CHECK(steps(1, STATEGATE_WROTE) == 8u && s.may_write == refuses && s.user == &may);
    CHECK(stategate_black_box_flush(&box) == STATEGATE_BOX_OK);
    CHECK(steps(20000 / (1 + INPUTS / 8), STATEGATE_QUIET) > 8u); /* more than once around */
    writes_left = 0;
    const uint64_t before = box.step;
    CHECK(steps(300, STATEGATE_QUIET) == before + 300u && box.lost_steps > 0u);
    CHECK(stategate_black_box_flush(&box) == STATEGATE_BOX_FAILED);
    writes_left = -1;
    CHECK(steps(300, STATEGATE_QUIET) == before + 600u);
    CHECK(stategate_black_box_flush(&box) == STATEGATE_BOX_OK);
    for (int i = 0; i < 2; ++i) {
        reads_left = i;
        CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_FAILED);
    }
    reads_left = -1;
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_OK && box.step == before + 600u);
    unsigned char *last = flash + BLOCK * (1u + (box.sequence - 1u) % BLOCKS);
    last[BLOCK - 1u] ^= 1u; /* its checksum does not fit: it is as if it had not been written */
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_OK);
    CHECK(box.step + (INPUTS < 1000) <= before + 600u);
    last[BLOCK - 1u] ^= 1u;
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_OK && box.step == before + 600u);
    CHECK(stategate_black_box_open(&box, all - BLOCK) == STATEGATE_BOX_OTHER);
    /* Blocks with a right checksum: of a place that is not theirs, and with no end of their own. */
    unsigned char *block = flash + BLOCK * (1u + box.sequence % BLOCKS);
    block[8] ^= 1u;
    seal(block, 4u, 0u);
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_OK && box.step == before + 600u);
    block[8] ^= 1u;
    (void)memset(block + 20, 0xFF, 2);
    (void)memcpy(block + 22, "\x20\x00", 2);
    (void)memset(block + 32, 0xFF, 4);
    seal(block, 4u, 0u);
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_OK && box.step == before + 600u);
    CHECK(stategate_black_box_create(&box, all, 2) == STATEGATE_BOX_OK);
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_OK && box.step == 0u);
    flash[BLOCK - 1u] ^= 1u;
    CHECK(stategate_black_box_open(&box, all) == STATEGATE_BOX_NONE);
    return wrong != 0;
}
"""


@pytest.mark.parametrize(("inputs", "states"), [(3, 4), (1500, 12_000)], ids=["small", "large"])
def test_a_black_box_in_c_answers_to_flash_that_fails_and_blocks_that_lie(
    tmp_path: Path, inputs: int, states: int
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (tmp_path / "stategate.h").write_text(HEADER)
    (tmp_path / "checks.c").write_text(CHECKS)
    c = Path(__file__).parents[2] / "export/c"
    command = ["cc", "-std=c99", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    command += [f"-DINPUTS={inputs}", f"-DSTATES={states}", "-I.", f"-I{c}", "checks.c"]
    words = [*command, c / "black_box.c", "-lm", "-o", "checks"]
    subprocess.run(words, cwd=tmp_path, check=True)
    done = subprocess.run(["./checks"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cc", "emulator", "hook"),
    [
        ("cc", (), ()),
        ("cc", (), ("hook",)),
        ("aarch64-linux-gnu-gcc", ("qemu-aarch64",), ("hook",)),
    ],
)
def test_a_program_in_c_is_replayed_bit_for_bit_over_two_lives(
    native_bundle: Path,
    tmp_path: Path,
    cc: str,
    emulator: tuple[str, ...],
    hook: tuple[str, ...],
) -> None:
    for program in (cc, *emulator):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: see make test-aarch64")
    bundle = Bundle.open(native_bundle)
    first = bundle.manifest.inputs[0]
    (tmp_path / "robot.c").write_text(ROBOT.replace("FIRST", first.name))
    sources = sorted((native_bundle / "native").glob("*.c"))
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    folder = native_bundle / "native"
    command = [
        cc,
        *flags,
        f"-I{folder}",
        "robot.c",
        *map(str, sources),
        "-lm",
        "-static",
        "-o",
        "robot",
    ]
    subprocess.run([*command, f"-Wa,-I{folder}"], cwd=tmp_path, check=True)
    rng = np.random.default_rng(1)
    inputs = (3 * rng.standard_normal((700, *first.shape))).astype(np.float32)
    inputs[100, 0, 0] = np.nan  # refused, and no step
    inputs.tofile(tmp_path / "inputs")
    writes = 0
    for life in (1, 2):
        robot = [*emulator, "./robot", "box.rec", "inputs", "300000", *hook]
        done = subprocess.run(robot, cwd=tmp_path, capture_output=True, text=True, check=True)
        step, wrote, _ = done.stdout.split()
        report = stategate.replay(tmp_path / "box.rec", native_bundle)
        assert report.passed and report.bit_for_bit and report.recorded_engine == "c"
        assert report.processes == life
        assert 0 <= int(step) - report.last_step <= 4096 // 288 + 1
        writes = int(wrote)
    assert writes > 10
    # Another size is left as it is.
    robot = [*emulator, "./robot", "box.rec", "inputs", "400000"]
    done = subprocess.run(robot, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "-3\n")


@pytest.mark.slow
def test_a_damaged_block_that_points_past_its_end_is_not_followed(
    native_bundle: Path, tmp_path: Path
) -> None:
    folder = native_bundle / "native"
    first = Bundle.open(native_bundle).manifest.inputs[0]
    (tmp_path / "robot.c").write_text(ROBOT.replace("FIRST", first.name))
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["cc", "-std=gnu11", "-O0", "-DSTATEGATE_PORTABLE", *sanitizers, f"-I{folder}"]
    sources = [path for path in folder.glob("*.c") if path.name != "python.c"]
    weights = write_weights(folder, tmp_path)
    words = [*command, "robot.c", weights, *sources, "-lm", "-o", "robot"]
    subprocess.run(words, cwd=tmp_path, check=True)
    np.zeros((700, *first.shape), np.float32).tofile(tmp_path / "inputs")
    robot = ["./robot", "box.rec", "inputs", "300000"]
    subprocess.run(robot, cwd=tmp_path, check=True)
    box = bytearray((tmp_path / "box.rec").read_bytes())
    block = 4096
    box[block + 20 : block + 24] = struct.pack("<HH", 0xFFFF, 32)  # its end, and its first record
    box[block + 32 : block + 36] = struct.pack("<I", 4096 - 32 - 16)  # up to the end of the block
    (tmp_path / "box.rec").write_bytes(box)
    done = subprocess.run(robot, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
