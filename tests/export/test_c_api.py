"""What other projects get of a bundle: C++ header, CMake package, the examples of the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stategate.bench.certify.builds import records
from stategate.contract import Bundle, Episode
from stategate.export.c.package import package_name
from stategate.runtime import Session

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "c-api.md"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
LEAN = ("-fno-exceptions", "-fno-rtti")

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

# Every call of the wrapper and every mistake that it can name, of any bundle with an input z.
PROGRAM = """
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include "stategate.hpp"

using stategate::Session;
static_assert(!std::is_copy_constructible_v<Session> && !std::is_move_constructible_v<Session>);
static_assert(!std::is_copy_assignable_v<Session> && !std::is_move_assignable_v<Session>);
static_assert(decltype(stategate::view(std::declval<stategate_inputs &>().z))::size() == 64);

static int wrong;
static void check(bool good, int line)
{
    if (!good) {
        std::printf("line %d\\n", line);
        wrong = 1;
    }
}
#define CHECK(good) check(static_cast<bool>(good), __LINE__)

static stategate::Saved saved, other;
alignas(Session) static unsigned char room[sizeof(Session)];

int main()
{
    static Session session;
    stategate_inputs in{}, copy{};
    const auto z = stategate::view(in.z);
    z.fill(0.5f);
    z.at<3>() = 1.0f;
    z[4] = 2.0f;
    stategate::view(copy.z).copy(z);
    CHECK(std::memcmp(in.z, copy.z, sizeof in.z) == 0);
#if __cplusplus >= 202002L
    const std::span<float, 64> span = z;
    CHECK(span.data() == in.z);
#endif
    int left = 1;
    auto may_write = [&left]() { return left-- > 0; };
    CHECK(session.initialised());
    session.limit_writes(may_write);
    z.fill(0.0f);
    for (int i = 0; i < 400; ++i) {
        z[static_cast<std::size_t>(i) % z.size()] = static_cast<float>(i % 7) - 3.0f;
        const auto answer = session.step(in);
        CHECK(answer);
        CHECK(answer.wrote() || answer.held() || answer.result().code() == STATEGATE_QUIET);
        CHECK(std::isfinite(answer->action[0]));
    }
    CHECK(session.counters().writes <= 1 && session.counters().suppressed_writes > 0);
    session.limit_no_more();
    CHECK(session.save(saved));
    const auto chain = session.chain(7);
    CHECK(session.step(in));
    CHECK(session.load(saved));
    CHECK(session.chain(7) == chain && session.counters().steps == 400);
    CHECK(session.load(saved.bytes, 3).code() == STATEGATE_DAMAGED);
    CHECK(session.load(nullptr, 0).code() == STATEGATE_NO_POINTER);
    CHECK(session.load(other).code() == STATEGATE_OTHER_MODEL);
    z[0] = std::numeric_limits<float>::quiet_NaN();
    const auto refused = session.step(in);
    CHECK(!refused && refused.result().code() == STATEGATE_BAD_INPUT);
    CHECK(std::strcmp(refused.result().name(), "NaN or infinity in an input") == 0);
    CHECK(session.chain(7) == chain);
    CHECK(session.reset() && session.counters().resets == 1);
    Session *passing = new (room) Session;
    CHECK(passing->initialised());
    passing->~Session();
    CHECK(stategate_step(reinterpret_cast<stategate_session *>(room), &copy, nullptr) < 0);
    return wrong;
}
"""


def run(folder: Path, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **more}
    return subprocess.run(
        [str(w) for w in words], cwd=folder, capture_output=True, text=True, check=False, env=env
    )


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.case("E15")
@pytest.mark.corners("17-g++")
@pytest.mark.parametrize("cc", ["g++", "clang++"])
@pytest.mark.parametrize("standard", ["17", "20"])
def test_the_header_of_cpp_compiles_without_a_warning_and_names_each_mistake(
    native_bundle: Path, tmp_path: Path, cc: str, standard: str
) -> None:
    if shutil.which(cc) is None:
        pytest.skip(f"no {cc}")
    (tmp_path / "main.cpp").write_text(PROGRAM)
    native = native_bundle / "native"
    words = [cc, f"-std=c++{standard}", "-O1", *STRICT, *LEAN, f"-I{native}", "main.cpp"]
    # The library that is there already: its functions are those of the C source.
    library = native / "libstep.so"
    good(run(tmp_path, *words, library, f"-Wl,-rpath,{native}", "-o", "main"))
    good(run(tmp_path, "./main", LD_LIBRARY_PATH=str(native)))


def test_every_file_of_the_package_is_in_the_manifest(native_bundle: Path) -> None:
    bundle = Bundle.open(native_bundle)
    native = bundle.manifest.native
    assert native is not None
    names = ("CMakeLists.txt", "stategate_aura_hard-config.cmake", "stategate.pc.in")
    files = {file.path: file for file in bundle.manifest.files}
    for name in (*names, "stategate.hpp"):
        assert f"native/{name}" in native.sources
        assert bundle.read(files[f"native/{name}"])
    text = (native_bundle / "native" / "CMakeLists.txt").read_text()
    compiled = set(re.findall(r"\b\w+\.c\b", text.partition("STATIC ")[2].partition(")")[0]))
    assert compiled == {p.name for p in (native_bundle / "native").glob("*.c")} - {"python.c"}


@pytest.mark.parametrize(
    ("model", "name"), [("aura-hard", "aura_hard"), ("My.Policy v2", "my_policy_v2"), ("Ж", "_")]
)
def test_the_name_of_a_package_is_the_models_in_small_letters(model: str, name: str) -> None:
    assert package_name(model) == name


@pytest.fixture
def project(native_bundle: Path, tmp_path: Path) -> Path:
    """A folder in which the page's commands find what they name."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake: apt-get install cmake")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "aura").symlink_to(native_bundle)
    return tmp_path


def readings(steps: int) -> np.ndarray:
    """What the stand-ins' sensors show."""
    count = np.arange(steps * 64, dtype=np.uint32)
    return ((count * np.uint32(7919) % 1024).astype(np.float32) / 512 - 1).reshape(steps, 1, 64)


@pytest.mark.slow
def test_each_command_of_the_page_does_what_it_says(project: Path, native_bundle: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config: apt-get install pkg-config")
    bundle = Bundle.open(native_bundle)
    golden = bundle.golden()
    assert golden is not None
    (project / "inputs.bin").write_bytes(records(bundle, golden.inputs))
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    # In one shell, as somebody types them.
    good(run(project, "bash", "-euc", "\n".join(blocks)))
    ways = sorted(project.glob("outputs_*.bin"))
    assert [p.stem[8:] for p in ways] == ["c", "cmake", "cpp", "installed", "pkg"]
    outputs = {path.read_bytes() for path in ways}
    assert len(outputs) == 1
    actions = np.frombuffer(outputs.pop()[: 128 * golden.steps], np.float32).reshape(-1, 32)[:, :8]
    np.testing.assert_allclose(actions, golden.outputs["action"][:, 0], rtol=0, atol=1e-5)
    with Session.open(native_bundle, engine="native") as session:
        first = [float(session.step(z=z)["action"][0, 0]) for z in readings(100)]
    printed = (project / "sketch.txt").read_text().split()
    np.testing.assert_allclose(list(map(float, printed)), first, rtol=0, atol=1e-6)
    lines = (project / "controller.txt").read_text().splitlines()
    np.testing.assert_allclose(list(map(float, lines[:100])), first, rtol=0, atol=1e-6)
    # NaN: the command stays, and the third time the manager is informed.
    assert lines[100:] == [lines[99], lines[99], f"{lines[99]} stopped"]


DIGEST = """cmake_minimum_required(VERSION 3.16)
project(digest LANGUAGES C)
{first}
add_subdirectory({native} aura)
add_executable(digest {root}/docs/examples/digest.c)
target_link_libraries(digest PRIVATE stategate::aura_hard)
"""


def digest_project(folder: Path, first: str = "") -> None:
    text = DIGEST.format(first=first, native=folder / "build/aura/native", root=ROOT)
    (folder / "CMakeLists.txt").write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "x86-64-v3"])
def test_flags_of_a_project_change_no_bit_of_its_library(
    project: Path, native_bundle: Path, isa: str
) -> None:
    bundle = Bundle.open(native_bundle)
    native, golden = bundle.manifest.native, bundle.golden()
    assert native is not None and golden is not None and native.golden_digest
    if isa and "avx2" not in native.needs:
        pytest.skip("this machine has no AVX2")
    digest_project(project)
    hostile = f"-ffp-contract=fast -O2 {f'-march={isa}' * bool(isa)}"
    words = [f"-DCMAKE_C_FLAGS={hostile}", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON"]
    good(run(project, "cmake", "-S", ".", "-B", "out", *words))
    good(run(project, "cmake", "--build", "out"))
    data = records(bundle, Episode(golden.inputs).inputs)
    done = subprocess.run([project / "out/digest"], input=data, capture_output=True, check=True)
    assert done.stdout.decode().split()[-1] == native.golden_digest


@pytest.mark.slow
def test_fast_mathematics_for_a_whole_project_is_refused(project: Path) -> None:
    for flag in ("-ffast-math", "-Ofast", "-funsafe-math-optimizations"):
        digest_project(project)
        shutil.rmtree(project / "out", ignore_errors=True)
        done = run(project, "cmake", "-S", ".", "-B", "out", f"-DCMAKE_C_FLAGS={flag}")
        assert done.returncode != 0 and f"flags for the whole project hold\n  {flag}" in (
            done.stderr.replace("hold ", "hold\n  ")
        )
    shutil.rmtree(project / "out", ignore_errors=True)
    digest_project(project, "add_compile_options(-ffast-math)")
    good(run(project, "cmake", "-S", ".", "-B", "out"))
    done = run(project, "cmake", "--build", "out")
    assert done.returncode != 0 and '#error "-ffast-math' in done.stdout + done.stderr
