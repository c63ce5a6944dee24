from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Budget, Bundle, FileRef, sha256, write_bundle
from stategate.contract.c_library import ABI, tag
from stategate.contract.errors import (
    DigestError,
    EngineError,
    EngineFallbackWarning,
    SpecError,
    StateFault,
    StepInputError,
)
from stategate.runtime import Session
from stategate.runtime.check.golden import replay
from stategate.runtime.engines.native import NativeEngine
from stategate.runtime.engines.native_call import FINITE
from stategate.runtime.trust.code import accept_for_this_process, code_digest


def golden_of(path: Path) -> list[dict[str, np.ndarray]]:
    golden = Bundle.open(path).golden()
    assert golden is not None
    return [dict(feed) for feed in golden]


def relabelled(path: Path, raw: bytes | None = None, **changes: object) -> Path:
    """The bundle with another library or another record of it, sealed as if that were right."""
    bundle = Bundle.open(path)
    native = bundle.manifest.native
    assert native is not None
    content = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
    if raw is not None:
        content[str(native.library)] = raw
    manifest = msgspec.structs.replace(
        bundle.manifest,
        native=msgspec.structs.replace(native, **changes),
        files=tuple(FileRef(f.path, sha256(content[f.path])) for f in bundle.manifest.files),
    )
    return write_bundle(path, manifest, content).path


def test_the_native_engine_repeats_the_golden_episode(native_bundle: Path) -> None:
    seen = replay(native_bundle, engine="native")
    assert seen is not None
    assert seen.passed and seen.gate_flips == 0


def test_both_engines_count_alike(native_bundle: Path) -> None:
    ledgers = []
    for engine in ("native", "onnxruntime"):
        with Session.open(native_bundle, engine=engine) as session:
            assert session.engine_name.startswith(engine)
            for feed in golden_of(native_bundle):
                session.step(**feed)
            ledgers.append(session.ledger)
    assert ledgers[0] == ledgers[1]
    assert ledgers[0].writes and ledgers[0].quiet_steps


def test_two_runs_are_equal_in_every_bit(native_bundle: Path) -> None:
    ends = []
    for _ in range(2):
        with Session.open(native_bundle, engine="native") as session:
            answers = [session.step(**f)["action"].tobytes() for f in golden_of(native_bundle)]
            ends.append((answers, session.state("S").tobytes(), session.state("b").tobytes()))
    assert ends[0] == ends[1]


def test_a_quiet_step_touches_neither_bank(native_bundle: Path) -> None:
    with Session.open(native_bundle, engine="native") as session:
        # Poison in the bank that a write would fill.
        for state in session._buffers.states:
            state.banks[1].array.fill(np.nan)
        for feed in golden_of(native_bundle):
            before = session.ledger.writes
            session.step(**feed)
            if session.ledger.writes > before:
                break
            for state in session._buffers.states:
                assert np.isnan(state.banks[1].array).all()
        assert session.ledger.quiet_steps


def test_a_used_up_budget_holds_the_write_as_with_the_other_engine(native_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=5)
    ends = []
    for engine in ("native", "onnxruntime"):
        with Session.open(native_bundle, engine=engine, budget=budget) as session:
            for feed in golden_of(native_bundle):
                session.step(**feed)
            ends.append(session.ledger)
    assert ends[0] == ends[1]
    assert ends[0].suppressed_writes


def test_nan_in_a_state_is_still_found(native_bundle: Path) -> None:
    with Session.open(native_bundle, engine="native") as session:
        for state in session._buffers.states:
            state.banks[0].array.fill(np.nan)
        with pytest.raises(StateFault):
            session.step(**golden_of(native_bundle)[0])


def _odd(z: np.ndarray) -> list[dict[str, object]]:
    """What callers hand over, right and wrong; ``z`` is ``(1, 64)`` float32."""
    nan = z.copy()
    nan[0, 7] = np.nan
    read_only = z.copy()
    read_only.flags.writeable = False
    return [
        {"z": z},
        {"z": read_only},
        {"z": np.repeat(z, 2, axis=1)[:, ::2]},
        {"z": np.asfortranarray(z)},
        {"z": z.view(np.recarray)},
        {"z": z.astype(">f4")},
        {"z": z.astype(np.float64)},
        {"z": z.view(np.int32)},
        {"z": z[0]},
        {"z": z.T},
        {"z": z[:, :63]},
        {"z": np.float32(1.0)},
        {"z": z.data},
        {"z": z.tolist()},
        {"z": None},
        {"z": nan},
        {"y": z},
        {"z": z, "y": z},
        {},
    ]


def test_inputs_are_taken_and_refused_as_with_the_other_engine(native_bundle: Path) -> None:
    answers: dict[str, list[tuple[object, ...]]] = {}
    for engine in ("native", "onnxruntime"):
        with Session.open(native_bundle, engine=engine) as session:
            answers[engine] = []
            for inputs in _odd(golden_of(native_bundle)[3]["z"]):
                try:
                    session.step(**inputs)  # type: ignore[arg-type]
                    answers[engine].append(("taken",))
                except StepInputError as refused:
                    answers[engine].append((type(refused), str(refused)))
            answers[engine].append((session.ledger.steps, session.ledger.faults))
    assert answers["native"] == answers["onnxruntime"]
    assert answers["native"].count(("taken",)) == 5


def test_a_step_keeps_nothing_of_what_it_is_given(native_bundle: Path) -> None:
    (feed, *_) = golden_of(native_bundle)
    with Session.open(native_bundle, engine="native") as session:
        for inputs in _odd(feed["z"]):
            value = inputs.get("z")
            before = sys.getrefcount(value)
            for _ in range(100):
                with suppress(StepInputError):
                    session.step(**inputs)  # type: ignore[arg-type]
            # What other code does with None meanwhile is not of interest.
            assert value is None or sys.getrefcount(value) == before


def test_the_calls_outlive_the_engine_that_made_them(native_bundle: Path) -> None:
    session = Session.open(native_bundle, engine="native")
    engine = session._engine
    assert isinstance(engine, NativeEngine)
    fill, step, feed = engine.fill, engine._steps[0], golden_of(native_bundle)[0]
    session.close()
    del session, engine
    gc.collect()
    assert [fill(feed), step(), fill({}), fill(feed | {"y": feed["z"]})] == [0, FINITE, 1, 1]


LEAVES = """
import sys
import numpy as np
from stategate.runtime import Session

class Leaves:
    def __init__(self, inputs):
        self.inputs = inputs

    @property
    def __class__(self):
        self.inputs.clear()
        return np.ndarray

with Session.open(sys.argv[1], engine="native") as session:
    inputs = {}
    inputs["z"] = Leaves(inputs)
    print(session._engine.fill(inputs))
"""


def test_what_leaves_the_inputs_when_it_is_looked_at_is_not_used_after(native_bundle: Path) -> None:
    command = [sys.executable, "-c", LEAVES, str(native_bundle)]
    env = os.environ | {"PYTHONMALLOC": "debug"}  # overwrites what is freed
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "1\n"), run.stderr


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda raw: b"MZ" + raw[2:], "not an ELF file"),
        (lambda raw: raw[:16] + b"\x02" + raw[17:], "not a shared object"),
        (lambda raw: raw[:18] + b"\x28" + raw[19:], "not for"),
        (lambda raw: raw.replace(b"stategate native abi", b"stategate native abj"), "another"),
        (lambda raw: raw[:10], "not an ELF file"),
    ],
)
def test_a_wrong_library_is_refused_before_it_is_mapped(
    native_bundle: Path,
    copy_of: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
    word: str,
) -> None:
    bundle = Bundle.open(native_bundle)
    file = next(f for f in bundle.manifest.files if f.path.endswith(".so"))
    changed = relabelled(copy_of(native_bundle), damage(bundle.read(file)))

    def mapped(*_: object) -> None:
        raise AssertionError("the library was mapped")

    monkeypatch.setattr(ctypes, "CDLL", mapped)
    with pytest.raises(EngineError, match=word):
        Session.open(changed, engine="native")


def test_an_altered_library_is_refused_by_its_digest(
    native_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    copy = copy_of(native_bundle)
    library = copy / "native" / "libstep.so"
    raw = bytearray(library.read_bytes())
    raw[-1] ^= 1
    library.write_bytes(raw)
    with pytest.raises(DigestError):
        Session.open(copy, engine="native")


def test_a_library_made_again_in_its_folder_is_the_one_that_runs(
    native_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    copy, (feed, *_) = copy_of(native_bundle), golden_of(native_bundle)
    library, weights = ((copy / "native" / n).read_bytes() for n in ("libstep.so", "weights.bin"))
    with Session.open(copy, engine="native") as first:
        before = first.step(**feed)["action"].copy()
        again = relabelled(copy, library.replace(weights, bytes(len(weights))))
        accept_for_this_process(code_digest(Bundle.open(again).manifest))
        with Session.open(copy, engine="native") as second:
            assert not second.step(**feed)["action"].any()
        first.reset()
        np.testing.assert_array_equal(first.step(**feed)["action"], before)


def test_what_was_checked_is_mapped_though_the_file_is_replaced_meanwhile(
    native_bundle: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, (feed, *_) = copy_of(native_bundle), golden_of(native_bundle)

    def and_then_replaced(*checked: object) -> None:
        (copy / "native" / "libstep.so").write_bytes(b"another file")

    monkeypatch.setattr("stategate.runtime.engines.native.check_library", and_then_replaced)
    monkeypatch.setattr("stategate.runtime.engines.native._MAPPED", {})
    with Session.open(copy, engine="native") as session:
        assert session.step(**feed)["action"].any()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"abi": ABI + 1}, "interface"),
        ({"machine": "sparc"}, "sparc"),
        ({"needs": ("pni", "avx9")}, "needs avx9, which this CPU does not have"),
        ({"library": None}, "C source only"),
    ],
)
def test_auto_falls_back_where_this_machine_cannot_load_the_library(
    native_bundle: Path,
    copy_of: Callable[[Path], Path],
    changes: dict[str, object],
    word: str,
) -> None:
    changed = relabelled(copy_of(native_bundle), **changes)
    with Session.open(changed) as session:
        assert session.engine_name.startswith("onnxruntime")
    with pytest.raises(EngineError, match=word):
        Session.open(changed, engine="native")


@pytest.mark.parametrize("call", ["os.memfd_create", "mmap.mmap"])
def test_a_system_that_runs_no_code_from_memory_leaves_it_to_the_next_engine(
    native_bundle: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def forbidden(*_: object) -> int:
        # Linux, where vm.memfd_noexec is 2, and where SELinux lets nobody run what he wrote.
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(call, forbidden)
    with pytest.raises(EngineError, match="no code from memory"):
        Session.open(native_bundle, engine="native")
    with Session.open(native_bundle) as session:
        assert session.engine_name.startswith("onnxruntime")
    told = CliRunner().invoke(main, ["inspect", str(native_bundle)]).output
    assert "auto takes onnxruntime: this system runs no code from memory" in told
    with (
        pytest.warns(EngineFallbackWarning, match="Permission denied"),
        Session.open(native_bundle, engine="native,onnxruntime") as session,
    ):
        assert session.engine_name.startswith("onnxruntime")


def test_a_system_that_is_not_linux_is_reported(
    native_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(EngineError, match="for Linux, this is Darwin"):
        Session.open(native_bundle, engine="native")


@pytest.mark.parametrize(
    ("step_us", "fastest"),
    [
        ({"native": 2.0, "onnxruntime": 20.0}, "native"),
        ({"native": 30.0, "onnxruntime": 20.0}, "onnxruntime"),
        ({"native": 2.0}, "native"),  # built where onnxruntime was not installed
        ({}, "onnxruntime"),
    ],
)
def test_auto_takes_the_faster_of_what_was_measured(
    native_bundle: Path, step_us: dict[str, float], fastest: str
) -> None:
    native = Bundle.open(native_bundle).manifest.native
    assert msgspec.structs.replace(native, step_us=step_us).fastest == fastest


def test_the_library_carries_the_tag_of_its_graph(native_bundle: Path) -> None:
    manifest = Bundle.open(native_bundle).manifest
    raw = (native_bundle / "native" / "libstep.so").read_bytes()
    assert tag(ABI, manifest.step_graph.file.sha256) in raw
    assert tag(ABI + 1, manifest.step_graph.file.sha256) not in raw


def test_an_unknown_engine_and_a_missing_one_are_refused(aura_bundle: Path) -> None:
    with pytest.raises(SpecError, match="unknown engine"):
        Session.open(aura_bundle, engine="tflite")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="no native engine"):
        Session.open(aura_bundle, engine="native")


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_verify_and_run_step_with_the_engine_that_is_named(
    native_bundle: Path, engine: str
) -> None:
    named = [str(native_bundle), "--engine", engine, "--json"]
    report = json.loads(CliRunner().invoke(main, ["verify", *named]).stdout)
    alone = replay(native_bundle, engine=engine)
    assert alone is not None
    # The engines take sums in another order, which is how they are told apart.
    assert report["replay"]["max_output_error"] == alone.max_output_error
    result = CliRunner().invoke(main, ["run", *named, "--steps", "10"])
    assert json.loads(result.stdout)["engine"].startswith(engine)


@pytest.mark.parametrize(
    ("verb", "engine", "code", "says"),
    [
        ("verify", "abacus", 2, "abacus"),
        ("verify", "native", 1, "no native engine"),
        ("run", "abacus", 2, "abacus"),
        ("run", "native", 1, "no native engine"),
    ],
)
def test_an_engine_that_is_not_there_is_said_on_the_command_line(
    aura_bundle: Path, verb: str, engine: str, code: int, says: str
) -> None:
    refused = CliRunner().invoke(main, [verb, str(aura_bundle), "--engine", engine])
    assert refused.exit_code == code
    assert says in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cc", "no-such-compiler"], "no-such-compiler"),
        (["--isa", "pentium-eleven"], "refused"),
        (["--flag", "-fno-such-flag"], "refused"),
    ],
)
def test_build_native_says_what_is_wrong_and_leaves_the_bundle(
    native_bundle: Path, words: list[str], says: str
) -> None:
    before = Bundle.open(native_bundle).digest
    result = CliRunner().invoke(main, ["build-native", str(native_bundle), *words])
    assert result.exit_code == 1
    assert says in result.output
    assert Bundle.open(native_bundle).digest == before


def test_build_native_needs_source(aura_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["build-native", str(aura_bundle)])
    assert result.exit_code == 2
    assert "no C source" in result.output


def test_source_for_another_interface_is_not_compiled(
    native_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    old = relabelled(copy_of(native_bundle), abi=ABI - 1)
    result = CliRunner().invoke(main, ["build-native", str(old)])
    assert result.exit_code == 2
    assert "another version of the runtime" in result.output


@pytest.mark.slow
def test_building_again_measures_both_engines(
    native_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    copy = copy_of(native_bundle)
    result = CliRunner().invoke(main, ["build-native", str(copy), "--isa", "x86-64", "--json"])
    assert result.exit_code == 0, result.output
    record = msgspec.json.decode(result.output)
    assert record["isa"] == "x86-64" and set(record["step_us"]) == {"native", "onnxruntime"}
    assert record["needs"] == []
    assert Bundle.open(copy).undeclared_files() == []
    seen = replay(copy, engine="native")
    assert seen is not None and seen.passed
