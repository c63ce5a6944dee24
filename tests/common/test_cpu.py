"""What a compiler may use of a CPU, read off the compiler, beside what the kernel lists."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from stategate.common import cpu
from stategate.common.c_library import load_obstacle
from stategate.common.compiler import compile_library
from stategate.contract import Bundle
from stategate.contract.errors import BuildError

SOURCE = {"one.c": b"int one(void) { return 1; }\n"}

on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("cc") is None,
    reason="needs a compiler for x86-64",
)


@on_x86
@pytest.mark.parametrize("isa", ["x86-64-v3", "x86-64-v4"])
def test_a_level_of_the_psabi_needs_what_the_psabi_lists(isa: str) -> None:
    names = list(cpu._X86_LEVELS)
    listed = set().union(*(cpu._X86_LEVELS[n] for n in names[: names.index(isa) + 1]))
    # The compiler has no macro for an exchange of 16 bytes that it would use by itself.
    assert set(compile_library(SOURCE, isa=isa).needs) == listed - {"cx16"}


@on_x86
def test_the_least_of_a_kind_needs_nothing() -> None:
    assert compile_library(SOURCE, isa="x86-64").needs == ()


@on_x86
def test_native_means_no_more_than_what_this_machine_has() -> None:
    made = compile_library(SOURCE, isa="native")
    assert set(made.needs) <= (cpu.features() or set())


@on_x86
def test_a_flag_asks_as_much_of_a_cpu_as_an_instruction_set() -> None:
    made = compile_library(SOURCE, isa="x86-64", extra=["-mavx512vnni"])
    assert {"avx512_vnni", "avx512f", "avx2"} <= set(made.needs)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs a cross compiler")
@pytest.mark.parametrize(
    ("isa", "needs"),
    [
        (None, set()),
        ("armv8.2-a+dotprod", {"asimddp", "asimdrdm", "atomics", "crc32"}),
    ],
)
def test_a_cross_compiler_is_read_in_the_words_of_its_own_machine(
    isa: str | None, needs: set[str]
) -> None:
    assert set(compile_library(SOURCE, cc="aarch64-linux-gnu-gcc", isa=isa).needs) == needs


def test_an_extension_that_nobody_knows_yet_keeps_a_name_that_no_kernel_lists() -> None:
    assert cpu.used({"__AVX99_3__", "__SSE3__", "__OPTIMIZE__"}, {"__OPTIMIZE__"}) == (
        "__AVX99_3__",
        "pni",
    )


@on_x86
@pytest.mark.parametrize(
    ("isa", "extra"), [("znver99", ()), ("", ()), ("x86-64", ("-mno-such-thing",))]
)
def test_what_the_compiler_does_not_know_is_refused(isa: str, extra: tuple[str, ...]) -> None:
    with pytest.raises(BuildError, match="refused"):
        compile_library(SOURCE, isa=isa, extra=extra)


@on_x86
@pytest.mark.case("C9")
def test_a_hidden_proc_is_what_the_message_speaks_of(
    monkeypatch: pytest.MonkeyPatch, native_bundle: Path
) -> None:
    native = Bundle.open(native_bundle).manifest.native
    assert native is not None and native.needs

    def hidden(*words: object) -> None:
        raise FileNotFoundError(words)

    monkeypatch.setattr("builtins.open", hidden)
    cpu.features.cache_clear()
    try:
        obstacle = load_obstacle(native)
    finally:
        monkeypatch.undo()
        cpu.features.cache_clear()
    assert obstacle is not None and "cannot be read" in obstacle
