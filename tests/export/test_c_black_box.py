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
