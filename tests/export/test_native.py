from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from stategate.common.compiler import MATHS, WARNINGS
from stategate.contract import Bundle, Episode
from stategate.contract.errors import LowerError
from stategate.export.c.lower import source_of
from stategate.export.c.package import package_of
from stategate.runtime import Session

ROOT = Path(__file__).parents[2]
COUNTERS = ("steps", "writes", "quiet_steps", "suppressed_writes", "ungated_writes", "faults")

# Counts every allocation between two calls of its switch; the C library's own are counted too.
MALLOC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
long counted;
void *malloc(size_t n) { ++counted; return __libc_malloc(n); }
void *calloc(size_t a, size_t b) { ++counted; return __libc_calloc(a, b); }
void *realloc(void *p, size_t n) { ++counted; return __libc_realloc(p, n); }
"""

STEPS = """
#include <stdio.h>
#include <stdlib.h>
#include "stategate.h"
extern long counted;
static stategate_session session;
static stategate_inputs in;
static stategate_outputs out;
int main(void)
{
    stategate_init(&session);
    void *volatile alive = malloc(8); /* so is the counter */
    free(alive);
    const long before = counted;
    for (int step = 0; step < 1000; ++step) {
        in.z[step % 64] = (float)(step % 7) - 3.0f;
        stategate_step(&session, &in, &out);
    }
    const long inside = counted - before;
    printf("%ld %ld %d %d\\n", before, inside, (int)session.counters.writes,
        (int)session.counters.quiet_steps);
    return 0;
}
"""

# Both banks lie on pages of their own, which nothing may write while the gate is closed.
PROTECTED = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "stategate.h"
int main(int argc, char **argv)
{
    (void)argv;
    const size_t bytes = (sizeof(stategate_states) + 4095) / 4096 * 4096;
    stategate_states *bank[2];
    static stategate_inputs in;
    static stategate_outputs out;
    static float threshold[16];
    threshold[0] = argc > 1 ? -1e30f : 1e30f;
    for (int i = 0; i < 2; ++i) {
        bank[i] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(bank[i], bytes, PROT_READ);
    }
    in.z[3] = 1.0f;
    void *takes[] = {&in.z, threshold, bank[0]->S, bank[0]->b};
    void *gives[] = {out.action, out.gate, bank[1]->S, bank[1]->b};
    stategate_compute(takes, gives);
    puts("survived");
    return 0;
}
"""


@pytest.fixture
def golden(native_bundle: Path) -> Episode:
    episode = Bundle.open(native_bundle).golden()
    assert episode is not None
    return episode


def compiled(source: Path, folder: Path, out: Path, *flags: str) -> Path:
    program = out / source.stem
    parts = [str(p) for p in folder.glob("*.c")]
    words = ["cc", "-std=gnu11", "-O2", *MATHS, *WARNINGS, "-Werror", *flags]
    words += [f"-I{folder}", f"-Wa,-I{folder}", str(source), *parts, "-lm", "-o", str(program)]
    subprocess.run(words, check=True, capture_output=True, text=True)
    return program


def written(tmp_path: Path, text: str, name: str = "main.c") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def outputs_of(raw: bytes, steps: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Actions, gates and counters; every member of a struct starts at a multiple of 64 bytes."""
    kind = np.dtype(
        {"names": ["action", "gate"], "formats": ["8f4", "f4"], "offsets": [0, 64], "itemsize": 128}
    )
    table = np.frombuffer(raw, kind, steps)
    counted = np.frombuffer(raw, "<u8", len(COUNTERS), steps * kind.itemsize)
    return table["action"], table["gate"], dict(zip(COUNTERS, counted.tolist(), strict=True))


def test_the_example_in_c_repeats_the_golden_episode(
    native_bundle: Path, golden: Episode, tmp_path: Path
) -> None:
    program = compiled(ROOT / "docs/examples/native.c", native_bundle / "native", tmp_path)
    z = golden.inputs["z"].astype("<f4").tobytes()
    run = subprocess.run([program], input=z, capture_output=True, check=True)
    action, gate, counters = outputs_of(run.stdout, golden.steps)
    np.testing.assert_allclose(action, golden.outputs["action"][:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(gate, golden.gates["gate"].reshape(-1), rtol=1e-5)
    with Session.open(native_bundle, engine="native") as session:
        for feed in golden:
            session.step(**feed)
        assert {name: getattr(session.ledger, name) for name in COUNTERS} == counters


def test_the_budget_hook_in_c_holds_writes(
    native_bundle: Path, golden: Episode, tmp_path: Path
) -> None:
    program = compiled(ROOT / "docs/examples/native.c", native_bundle / "native", tmp_path)
    z = golden.inputs["z"].astype("<f4").tobytes()
    run = subprocess.run([program, "3"], input=z, capture_output=True, check=True)
    _, _, counters = outputs_of(run.stdout, golden.steps)
    assert counters["writes"] == 3 and counters["suppressed_writes"] > 0
    total = sum(counters[name] for name in ("writes", "quiet_steps", "suppressed_writes"))
    assert total == counters["steps"] == golden.steps


def test_nan_in_c_is_refused_and_counted_nowhere(
    native_bundle: Path, golden: Episode, tmp_path: Path
) -> None:
    program = compiled(ROOT / "docs/examples/native.c", native_bundle / "native", tmp_path)
    z = golden.inputs["z"].astype("<f4").copy()
    z[5, 0, 7] = np.nan
    run = subprocess.run([program], input=z.tobytes(), capture_output=True, check=False)
    assert run.returncode == 1 and b"step 5 refused" in run.stderr


@pytest.mark.slow
def test_the_generated_code_is_clean_under_both_sanitizers(
    native_bundle: Path, golden: Episode, tmp_path: Path
) -> None:
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    source, folder = ROOT / "docs/examples/native.c", native_bundle / "native"
    program = compiled(source, folder, tmp_path, *flags)
    z = golden.inputs["z"].astype("<f4").tobytes()
    run = subprocess.run([program], input=z, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert b"runtime error" not in run.stderr


def test_a_step_allocates_nothing(native_bundle: Path, tmp_path: Path) -> None:
    main, counter = written(tmp_path, STEPS), written(tmp_path, MALLOC, "count.c")
    program = compiled(main, native_bundle / "native", tmp_path, str(counter))
    seen = subprocess.run([program], capture_output=True, check=True, text=True).stdout.split()
    before, inside, writes, quiet = map(int, seen)
    assert before > 0 and writes > 0 and quiet > 0
    assert inside == 0


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["closed", "open"])
def test_only_an_open_gate_dirties_the_pages_of_the_state(
    native_bundle: Path, tmp_path: Path, gate: str
) -> None:
    program = compiled(written(tmp_path, PROTECTED), native_bundle / "native", tmp_path)
    words = [str(program), *(["open"] if gate == "open" else [])]
    run = subprocess.run(words, capture_output=True, check=False, text=True)
    survived = run.returncode == 0 and run.stdout == "survived\n"
    assert survived == (gate == "closed")


def test_the_library_holds_no_writable_weights_and_calls_only_mathematics(
    native_bundle: Path,
) -> None:
    library = native_bundle / "native" / "libstep.so"
    assert library.stat().st_size < 200_000
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, check=True, text=True
    ).stdout.split("\n")
    called = {line.split()[-1].split("@")[0] for line in listed if " U " in line}
    # gcc itself puts calls of the mem family where structs are copied.
    assert called <= {"logf", "memcpy", "memcmp", "memset", "memmove"}


def test_the_headers_are_c_plus_plus_too(native_bundle: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None or shutil.which("nm") is None:
        pytest.skip("no C++ compiler, or no nm")
    names = ("stategate", "stategate_black_box", "stategate_chain", "stategate_install")
    text = "".join(f'#include "{name}.h"\n' for name in names)
    text += "stategate_session s;\nstategate_black_box b;\n"
    text += "int both() { return stategate_init(&s) + stategate_black_box_flush(&b); }\n"
    source = written(tmp_path, text, "user.cpp")
    words = ["c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-c", str(source)]
    words += [f"-I{native_bundle / 'native'}", "-o", str(tmp_path / "user.o")]
    subprocess.run(words, check=True, capture_output=True)
    listed = subprocess.run(["nm", "-u", tmp_path / "user.o"], capture_output=True, check=True)
    assert set(listed.stdout.decode().split()) == {  # as C names them
        *("U", "stategate_init_as", "stategate_black_box_flush")
    }


def test_temporaries_too_large_for_a_stack_are_static_and_compute_the_same(
    native_bundle: Path, golden: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(native_bundle)
    graph = bundle.read(bundle.manifest.step_graph.file)
    monkeypatch.setattr("stategate.export.c.part.STACK_BYTES", 0)
    folder = tmp_path / "source"
    folder.mkdir()
    for name, raw in source_of(graph, bundle.manifest.step, {}).files.items():
        (folder / name).write_bytes(raw)
    assert "STATEGATE_TEMPORARY float float_pool" in (folder / "read.c").read_text()
    program = compiled(ROOT / "docs/examples/native.c", folder, tmp_path)
    z = golden.inputs["z"].astype("<f4").tobytes()
    run = subprocess.run([program], input=z, capture_output=True, check=True)
    action, _, _ = outputs_of(run.stdout, golden.steps)
    np.testing.assert_allclose(action, golden.outputs["action"][:, 0], rtol=0, atol=1e-5)


def test_an_operator_without_c_is_named(native_bundle: Path) -> None:
    bundle = Bundle.open(native_bundle)
    graph = onnx.load_model_from_string(bundle.read(bundle.manifest.step_graph.file))
    graph.graph.node[1].domain = "somewhere.else"
    graph.opset_import.append(onnx.helper.make_opsetid("somewhere.else", 1))
    with pytest.raises(LowerError, match="onnxruntime engine steps this model"):
        source_of(graph.SerializeToString(), bundle.manifest.step, {})


def test_source_is_the_same_whenever_it_is_made(native_bundle: Path) -> None:
    bundle = Bundle.open(native_bundle)
    graph = bundle.read(bundle.manifest.step_graph.file)
    native = bundle.manifest.native
    assert native is not None
    listed = {file.path: file for file in bundle.manifest.files}
    again = source_of(graph, bundle.manifest.step, {}).files
    again |= package_of(bundle.manifest.model.name, again)
    assert {f"native/{name}": raw for name, raw in again.items()} == {
        path: bundle.read(listed[path]) for path in native.sources
    }


def test_importing_the_engine_needs_no_other_library(native_bundle: Path) -> None:
    code = (
        "import sys; from stategate.runtime import Session\n"
        "from stategate.runtime.check.golden import replay\n"
        f"Session.open({str(native_bundle)!r}, engine='native').close()\n"
        f"assert replay({str(native_bundle)!r}, engine='native').passed\n"
        "heavy = {'onnxruntime', 'onnx', 'torch', 'emx_onnx_cgen'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
