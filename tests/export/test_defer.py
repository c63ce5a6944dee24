"""A bundle in deferred form: what is appended, folded and taken back, in both engines and in C."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import stategate
from lab.bits import compare
from stategate.bench.certify.builds import PLAIN, Build
from stategate.bench.fits.report import fits_report
from stategate.bench.wear import WriteRate, state_bytes, write_rate
from stategate.calibration.thresholds.recalibrate import recalibrate
from stategate.contract import Budget, Bundle, Episode, StateSpec
from stategate.contract.chain import START
from stategate.contract.errors import (
    EngineError,
    GraphError,
    SnapshotError,
    SpecError,
    StateFault,
    StepInputError,
    WriteBudgetError,
)
from stategate.export.tensorrt.generations import GENERATIONS
from stategate.export.tensorrt.rules import check_legal
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.zoo.makers import GDN2
from stategate.runtime import Pool, Session, SnapshotPolicy
from stategate.targets import load

LENGTH = 4
FOLD = 4 * 2 * 8 * 8  # the matrices of two heads
ROW = 4 * 2 * (3 * 8)  # decay, key and value of two heads

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def small() -> Stack:
    torch.manual_seed(0)
    layer = replace(GDN2, width=16, key_dim=8, value_dim=8)
    return Stack(StackConfig(4, 2, layers=1, mlp=None, layer=layer, threshold=0.71))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("defer") / "bundle"
    stategate.make(small(), out, defer=LENGTH, steps=64, engines="onnxruntime,native")
    return out


def inputs(steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(1, 4)).astype(np.float32) for _ in range(steps)]


def memory(session: Session) -> dict[str, bytes]:
    return {s.name: session.state(s.name).tobytes() for s in session.manifest.states}


def test_the_receipt_is_of_the_plain_model(bundle: Path) -> None:
    receipt = Bundle.open(bundle).manifest.verification
    assert receipt is not None and receipt.gate_flips == 0
    assert max(receipt.max_output_error or 0, receipt.max_state_error or 0) < 2e-6
    assert receipt.gate_openings["fold"] == receipt.gate_openings["write"] // LENGTH


@pytest.mark.slow
def test_a_program_in_c_has_the_digest_that_the_manifest_promises(
    bundle: Path, tmp_path: Path
) -> None:
    forms = [Build("cc", "-O1", "x86-64", flags) for flags in ((), (PLAIN,))]
    if (why := forms[0].lacking) is not None:
        pytest.skip(why)
    result = compare(Bundle.open(bundle), forms, tmp_path)
    assert len(result["builds"]) == 2 and result["digests"] == [result["promised"]]


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_a_matrix_changes_by_folds_alone_and_every_byte_is_counted(
    bundle: Path, engine: str
) -> None:
    with Session.open(bundle, engine=engine) as session:
        writes = 0
        S = session.state("layers.0.S")
        for x in inputs(60):
            session.step(x=x)
            ledger = session.ledger
            writes = ledger.writes
            now = session.state("layers.0.S")
            assert now.tobytes() == S.tobytes() or writes % LENGTH == 0
            S = now
            ring = session.state("layers.0.ring")
            assert int(session.state("waiting")[0]) == writes % LENGTH
            assert not ring[:, writes % LENGTH :].any()
        folds = writes // LENGTH
        assert 0 < ledger.quiet_steps < 60 and folds > 3
        assert ledger.appends == writes - folds
        assert ledger.appended_bytes == ledger.appends * ROW
        assert ledger.folded_bytes == folds * S.nbytes
        assert ledger.gate_openings["fold"] == folds
        rest = 60 * sum(
            session.state(n).nbytes for n in ("waiting", "layers.0.log_decay", "layers.0.conv")
        )
        assert ledger.memory_bytes_written == ledger.appended_bytes + ledger.folded_bytes + rest


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_steps_that_were_taken_back_leave_the_bits_of_never_having_stepped(
    bundle: Path, engine: str
) -> None:
    with Session.open(bundle, engine=engine, rewind=True) as session:
        past: list[dict[str, bytes]] = []
        since = undone = 0
        for t, x in enumerate(inputs(80)):
            past.append(memory(session))
            folds = session.ledger.gate_openings["fold"]
            session.step(x=x)
            since = 0 if session.ledger.gate_openings["fold"] > folds else since + 1
            reach = min(since, LENGTH - 1)
            if t % 3 == 2:
                with pytest.raises(SpecError, match="cannot be taken back"):
                    session.rewind(reach + 1)
                if reach:
                    session.rewind(reach)
                    undone += reach
                    assert memory(session) == past[t + 1 - reach]
                    for again in inputs(80)[t + 1 - reach : t + 1]:
                        session.step(x=again)
        assert session.ledger.rewound_steps == undone > 20


def test_a_refused_step_loses_no_step_of_a_rewind(bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=1, on_writes="raise")
    past: list[dict[str, bytes]] = []
    rewinds = 0
    with Session.open(bundle, rewind=True, budget=budget) as session:
        for x in inputs(60):
            before = memory(session)
            try:
                session.step(x=x)
                past.append(before)
            except WriteBudgetError:
                if len(past) >= LENGTH - 1:
                    session.rewind(LENGTH - 1)
                    rewinds += 1
                    assert memory(session) == past[1 - LENGTH]
                    past.clear()
    assert rewinds > 3


def test_what_each_state_costs_a_step_is_what_the_ledger_counts(bundle: Path) -> None:
    with Session.open(bundle) as session:
        for x in inputs(90):
            session.step(x=x)
        ledger = session.ledger
        share = WriteRate(ledger.writes / ledger.steps, "measured")
        costs = state_bytes(session.manifest, share)
        assert write_rate(session.manifest).source.find("fold") < 0
    for cost in costs:
        counted = ledger.state_bytes_written[cost.state]
        assert abs(counted - 90 * cost.per_step) <= cost.each, cost
    assert {cost.kind for cost in costs} == {"written", "appended", "folded"}


def test_steps_that_were_taken_back_are_events_of_a_black_box(bundle: Path, tmp_path: Path) -> None:
    box = tmp_path / "box.rec"
    with Session.open(bundle, rewind=True, black_box=box) as session:
        for t, x in enumerate(inputs(60)):
            session.step(x=x)
            if t % 7 == 5 and session.state("waiting")[0]:
                session.rewind(1)
        undone = session.ledger.rewound_steps
    report = stategate.replay(box, bundle)
    assert report.passed and report.bit_for_bit and report.steps == 60
    assert report.begins == undone > 2


def test_a_session_that_keeps_no_steps_says_how_to(bundle: Path) -> None:
    with Session.open(bundle) as session:
        session.step(x=inputs(1)[0])
        with pytest.raises(SpecError, match="rewind=True"):
            session.rewind(1)


def test_a_branch_leaves_the_bits_of_never_having_stepped_and_is_not_saved(
    bundle: Path, tmp_path: Path
) -> None:
    policy = SnapshotPolicy(tmp_path / "s", every_writes=1)
    with Session.open(bundle, snapshots=policy) as session:
        for x in inputs(7):
            session.step(x=x)
        before, snapshots = memory(session), session.ledger.snapshots
        with session.branch():
            for x in inputs(20):
                session.step(x=x)
            with session.branch():
                session.reset()
            assert memory(session) != before
            with pytest.raises(SnapshotError, match="a branch is not saved"):
                session.save()
        assert memory(session) == before
        assert (session.ledger.rewound_steps, session.ledger.snapshots) == (20, snapshots)


def overflow() -> np.ndarray:
    """An input that no float32 survives."""
    rows = small().encode.weight.detach().numpy()
    largest = rows[np.abs(rows).sum(axis=1).argmax()]
    return np.float32(3.4e38) * np.sign(largest)[None]


def test_a_fault_behind_a_branch_is_answered_as_if_there_had_been_none(bundle: Path) -> None:
    with Session.open(bundle, on_fault="hold") as session:
        good = session.step(x=inputs(1)[0])["y"].copy()
        for _ in range(2):
            with session.branch():
                for x in inputs(5):
                    ahead = session.step(x=-x)["y"]
                    assert ahead.tobytes() != good.tobytes()
            assert session.step(x=overflow())["y"].tobytes() == good.tobytes()
        session.reset()
        with session.branch():
            session.step(x=inputs(1)[0])
        with pytest.raises(StateFault):
            session.step(x=overflow())


def alternating() -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs that open the gate, and one that leaves it closed."""
    opens = [np.full((1, 4), 0.1 + 0.015 * t, np.float32) for t in range(60)]
    return opens, np.full((1, 4), 5, np.float32)


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_a_fault_takes_back_the_last_write_and_the_quiet_steps_after_it(
    bundle: Path, engine: str
) -> None:
    opens, quiet = alternating()
    with (
        Session.open(bundle, engine=engine, on_fault="rewind") as session,
        Session.open(bundle, engine=engine) as never,
    ):
        for x in opens[: LENGTH + 1]:  # one row waits behind a fold
            session.step(x=x)
            never.step(x=x)
        session.step(x=opens[-1])
        good = session.step(x=quiet)["y"].tobytes()
        ledger = session.ledger
        assert (ledger.writes, ledger.quiet_steps) == (LENGTH + 2, 1)
        assert session.step(x=overflow())["y"].tobytes() == good
        assert memory(session) == memory(never)
        now = session.ledger
        assert (now.faults, now.rewound_steps, now.steps) == (1, 2, ledger.steps + 1)
        for x in opens:  # and goes on as if they had never been
            assert session.step(x=x)["y"].tobytes() == never.step(x=x)["y"].tobytes()
        assert memory(session) == memory(never)


def test_faults_at_the_same_place_take_back_one_write_more_down_to_the_last_fold(
    bundle: Path,
) -> None:
    opens, quiet = alternating()
    with Session.open(bundle, on_fault="rewind") as session:
        past = []
        for x in opens[: LENGTH * 2 - 1]:
            session.step(x=x)
            past.append(memory(session))  # the last ones hold 0 to 3 rows
        rows = []
        for _ in range(LENGTH - 1):
            session.step(x=overflow())
            rows.append(int(session.state("waiting")[0]))
            assert memory(session) == past[LENGTH - 1 + rows[-1]]
            session.step(x=opens[LENGTH + rows[-1]])
        assert rows == [2, 1, 0]
        inside = session.ledger.rewound_steps
        session.rewind(1)
        session.step(x=overflow())  # nothing is left: as with hold
        assert memory(session) == past[LENGTH - 1]
        assert session.ledger.rewound_steps == inside + 1
        for x in opens[: LENGTH + 1]:
            session.step(x=x)
        session.step(x=opens[-1])
        session.step(x=overflow())  # after a fold, faults are counted anew
        assert int(session.state("waiting")[0]) == 1


def test_before_a_good_answer_a_fault_is_raised_and_says_what_is_in_place(bundle: Path) -> None:
    with Session.open(bundle, on_fault="rewind") as session:
        before = memory(session)
        with pytest.raises(StateFault, match="the last write is taken back where it was kept"):
            session.step(x=overflow())
        assert memory(session) == before
        assert (session.ledger.faults, session.ledger.rewound_steps) == (1, 0)


def test_a_fault_that_took_steps_back_is_replayed_and_survives_a_restart(
    bundle: Path, tmp_path: Path
) -> None:
    box, policy = tmp_path / "box", SnapshotPolicy(tmp_path / "s", every_writes=1, journal=True)
    with Session.open(bundle, on_fault="rewind", black_box=box, snapshots=policy) as session:
        for t, x in enumerate(alternating()[0]):
            if t % 3 == 2:
                session.step(x=overflow())
            session.step(x=x)
        assert session.ledger.rewound_steps > 2
        before = memory(session)
    report = stategate.replay(box, bundle)
    assert report.passed and report.bit_for_bit
    with Session.open(bundle, snapshots=policy) as session:
        session.restore()
        assert memory(session) == before


def test_a_step_that_was_taken_back_twice_counts_once(bundle: Path) -> None:
    with Session.open(bundle, rewind=True) as session:
        with session.branch():
            with session.branch():
                session.step(x=inputs(1)[0])
            session.step(x=inputs(1)[0])
            session.rewind(1)
        assert (session.ledger.steps, session.ledger.rewound_steps) == (2, 2)


def test_a_restore_within_a_branch_breaks_no_journal(bundle: Path, tmp_path: Path) -> None:
    policy = SnapshotPolicy(tmp_path / "s", every_writes=1, journal=True)
    with Session.open(bundle, snapshots=policy) as session:
        for x in inputs(9):
            session.step(x=x)
        session.step(x=np.zeros_like(x))  # quiet, and so not saved
        with session.branch():
            session.restore()
        writes = session.ledger.writes
        for x in inputs(60)[10:]:
            session.step(x=x)
            if session.ledger.writes > writes:
                break
        before = memory(session)
    with Session.open(bundle, snapshots=policy) as session:
        session.restore()
        assert memory(session) == before


def test_a_journal_gives_back_what_was_appended_folded_and_taken_back(
    bundle: Path, tmp_path: Path
) -> None:
    policy = SnapshotPolicy(tmp_path / "s", every_writes=1, journal=True)
    before: dict[str, bytes] = {}
    for again in range(3):
        with Session.open(bundle, snapshots=policy, rewind=True) as session:
            assert (session.restore() is not None) == (again > 0)
            assert not before or memory(session) == before
            for t, x in enumerate(inputs(33)):
                session.step(x=x)
                if t % 5 == 4 and int(session.state("waiting")[0]) > 1:
                    session.rewind(1)
                    session.step(x=-x)
            with session.branch():
                session.step(x=x)
            session.step(x=x)
            for x in inputs(60)[33:]:
                writes = session.ledger.writes
                session.step(x=x)
                if session.ledger.writes > writes:
                    break  # what is saved is as of a write
            before = memory(session)


def test_a_state_that_counts_more_rows_than_there_are_is_refused(bundle: Path) -> None:
    with Session.open(bundle) as session:
        states = {s.name: session.state(s.name) for s in session.manifest.states}
        for rows in (-1, LENGTH):
            with pytest.raises(StepInputError, match="counts rows that no ring has"):
                session.load_state({**states, "waiting": np.array([rows], np.int32)})


def test_a_budget_of_bytes_lets_through_what_it_promises(bundle: Path) -> None:
    with Session.open(bundle, budget=Budget(folded_bytes_per_1000_steps=FOLD)) as session:
        for x in inputs(60):
            session.step(x=x)
        ledger = session.ledger
        # One fold at the beginning; the rings are filled once more, and the next fold waits.
        assert (ledger.folded_bytes, ledger.appends) == (FOLD, 2 * (LENGTH - 1))
        assert ledger.suppressed_writes > 20


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("defer") / "plain"
    stategate.make(small(), out, steps=64)
    return out


@pytest.mark.slow
def test_states_of_the_plain_form_are_no_states_of_the_deferred_one(
    bundle: Path, plain: Path
) -> None:
    with Session.open(bundle) as session, Session.open(plain) as other:
        for x in inputs(LENGTH + 1):
            session.step(x=x)
            other.step(x=x)
        deferred, states = (
            {s.name: one.state(s.name) for s in one.manifest.states} for one in (session, other)
        )
        with pytest.raises(StepInputError, match=r"no state 'layers\.0\.ring'"):
            other.load_state(deferred)
        with pytest.raises(StepInputError, match="this one is deferred") as refusal:
            session.load_state(states)
        remedy = str(refusal.value).partition("waits: ")[2]
        exec(remedy, {"session": session, "states": states})
        x = inputs(9)[-1]
        assert np.abs(session.step(x=x)["y"] - other.step(x=x)["y"]).max() < 1e-6


@pytest.mark.slow
def test_a_plain_and_a_deferred_bundle_are_compared_and_decide_alike(
    bundle: Path, plain: Path
) -> None:
    episode = Episode({"x": np.stack(inputs(64))})
    for pair in ((plain, bundle), (bundle, plain)):
        report = stategate.compare(*pair, episode)
        assert report.passed and report.total.state_error < 1e-6
        assert "state layers.0.S" in report.not_compared
        assert recalibrate(*pair, episode).gates[0].curve


def test_any_whole_number_of_steps_is_taken_back_and_nothing_else(bundle: Path) -> None:
    with Session.open(bundle, rewind=True) as session:
        for x in inputs(LENGTH - 1):
            session.step(x=x)
        session.rewind(np.int64(1))
        for wrong in (True, 1.0, "1", None):
            with pytest.raises(SpecError, match="cannot be taken back"):
                session.rewind(wrong)  # type: ignore[arg-type]
        assert session.ledger.rewound_steps == 1


def test_tensorrt_does_not_append_and_says_so(bundle: Path) -> None:
    with pytest.raises(EngineError, match="appends no rows"):
        Session.open(bundle, engine="tensorrt")


def test_neither_fits_nor_the_rules_say_that_tensorrt_steps_it(bundle: Path) -> None:
    opened, target = Bundle.open(bundle), load("jetson-orin-nano-8gb")
    report = fits_report(opened, [target])
    assert report.fits[0].legal == ("onnxruntime", "native")
    assert "tensorrt" not in report.fits[0].build_peak_bytes
    graph, step = opened.manifest.step_graph.file, opened.manifest.step
    with pytest.raises(GraphError, match="rows that are appended; export without --defer"):
        check_legal(onnx.load(bundle / graph.path), step, GENERATIONS["10"])


def test_a_pool_does_not_append_and_says_so(bundle: Path) -> None:
    with pytest.raises(SpecError, match="not deferred in a pool"):
        Pool.open(bundle)


def test_a_pool_and_lower_precision_are_refused(tmp_path: Path) -> None:
    for options in ({"sessions": 2}, {"state_precision": "float16"}, {"operators": "ort"}):
        with pytest.raises(SpecError, match="leave --defer away"):
            stategate.make(small(), tmp_path / "no", defer=4, **options)
    assert not (tmp_path / "no").exists()


class InC:
    """A session of the bundle's library, without the runtime."""

    def __init__(self, path: Path) -> None:
        bundle = Bundle.open(path)
        native, spec = bundle.manifest.native, bundle.manifest.step
        assert native is not None and native.library is not None
        self.library = ctypes.CDLL(str((path / native.library).resolve()))
        header = (path / native.library).with_name("stategate.h").read_text()
        self.macro = {
            name: int(re.search(rf"define {name}\s+(\d+)", header)[1])  # type: ignore[index]
            for name in ("STATEGATE_KEPT_BYTES", "STATEGATE_STATE_BYTES", "STATEGATE_ROWS")
        }
        layout = int(re.search(r"LAYOUT UINT64_C\((0x\w+)\)", header)[1], 16)  # type: ignore[index]
        self.session = self.aligned(sum(4096 + 2 * s.bytes for s in spec.states))
        self.history = self.aligned(self.macro["STATEGATE_KEPT_BYTES"])
        self.x, self.out = self.aligned(64), self.aligned(4096)
        self.call("init_as", ctypes.c_uint64(layout))

    @staticmethod
    def aligned(nbytes: int) -> np.ndarray:
        raw = np.zeros(nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + nbytes]

    def call(self, name: str, *more: object) -> int:
        function = getattr(self.library, f"stategate_{name}")
        first = ctypes.c_void_p(self.session.ctypes.data)
        rest = [ctypes.c_void_p(m.ctypes.data) if isinstance(m, np.ndarray) else m for m in more]
        return int(function(first, *rest))

    def step(self, x: np.ndarray) -> int:
        self.x[:16] = x.view(np.uint8).ravel()
        return self.call("step", self.x, self.out)

    def states(self) -> bytes:
        saved = self.aligned(1 << 14)
        self.library.stategate_save.restype = ctypes.c_size_t
        nbytes = self.call("save", saved, ctypes.c_size_t(saved.size))
        return saved[nbytes - 4 - self.macro["STATEGATE_STATE_BYTES"] : nbytes - 4].tobytes()


def test_a_session_in_c_takes_steps_back_to_the_same_bits(bundle: Path) -> None:
    c = InC(bundle)
    assert c.call("rewind", 1) == -10  # nothing is kept
    assert c.call("keep_steps", c.history, ctypes.c_size_t(c.history.size - 1)) == -10
    assert c.call("keep_steps", c.history, ctypes.c_size_t(c.history.size)) == 0
    past, folds = [], 0
    c.library.stategate_chain.restype = ctypes.c_uint64
    chain = START
    with Session.open(bundle, engine="native", chain=True) as session:
        for t, x in enumerate(inputs(40)):
            past.append(c.states())
            assert c.step(x) >= 0
            session.step(x=x)
            folded = session.ledger.gate_openings["fold"] > folds
            folds = session.ledger.gate_openings["fold"]
            assert c.states() == b"".join(memory(session).values())
            chain = c.call("chain", ctypes.c_uint64(chain))
            assert chain == session.chain
            if folded:
                assert c.call("rewind", 1) == -10
            else:
                assert c.call("rewind", 1) == 0
                assert c.states() == past[t]
                assert c.step(x) >= 0
    assert folds > 3
    assert c.call("rewind", 0) == -10
    assert c.call("rewind", LENGTH) == -10


IN_C = """
#include <stdio.h>
#include "stategate.h"
static stategate_session session;
static STATEGATE_ALIGNED stategate_inputs in;
static STATEGATE_ALIGNED stategate_outputs out;
static char kept[STATEGATE_KEPT_BYTES] STATEGATE_ALIGNED;
int main(void) {
    stategate_byte_budget budget;
    stategate_init(&session);
    stategate_keep_steps(&session, kept, sizeof kept);
    stategate_budget_init(&budget, APPENDED, FOLDED);
    while (fread(&in.x, sizeof in.x, 1, stdin) == 1) {
        int result = stategate_step_within(&budget, &session, &in, &out);
        printf("%d %lu\\n", result, (unsigned long)session.counters.appends);
        if (session.counters.steps % 5 == 4) { stategate_rewind(&session, 1); }
    }
    return 0;
}
"""
IN_CPP = """
#include <cstdio>
#include "stategate.hpp"
static stategate::KeptSteps room;
static stategate::Session session;
int main() {
    stategate_inputs in{};
    if (!session.keep_steps(room)) { return 1; }
    session.limit_bytes(APPENDED, FOLDED);
    while (std::fread(&in.x, sizeof in.x, 1, stdin) == 1) {
        const auto answer = session.step(in);
        std::printf("%d %lu\\n", static_cast<int>(answer.result().code()),
            static_cast<unsigned long>(session.counters().appends));
        if (session.counters().steps % 5 == 4) { static_cast<void>(session.rewind(1)); }
    }
    return 0;
}
"""


@pytest.mark.parametrize(
    "words",
    [
        ("cc", "-x", "c", IN_C),
        pytest.param(("c++", "-std=c++17", "-Wextra", "-x", "c++", IN_CPP), marks=pytest.mark.slow),
    ],
    ids=["c", "c++"],
)
def test_a_budget_of_bytes_holds_in_c_as_it_does_in_python(
    bundle: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    *compiler, text = words
    limits = (2.0 * ROW, 1.0 * FOLD)
    source = tmp_path / "main"
    source.write_text(text)
    manifest = Bundle.open(bundle).manifest
    assert manifest.native is not None and manifest.native.library is not None
    library = bundle / manifest.native.library
    program = tmp_path / "program"
    flags = [f"-DAPPENDED={limits[0]}", f"-DFOLDED={limits[1]}", "-I", str(library.parent)]
    flags += ["-Wall", "-Werror", str(source), "-x", "none", str(library)]
    flags += [f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*compiler, *flags, "-o", str(program)], check=True)
    raw = b"".join(x.tobytes() for x in inputs(900))
    lines = subprocess.run([program], input=raw, capture_output=True, check=True).stdout.split(
        b"\n"
    )
    budget = Budget(appended_bytes_per_1000_steps=limits[0], folded_bytes_per_1000_steps=limits[1])
    results = set()
    with Session.open(bundle, budget=budget, rewind=True, engine="native") as session:
        for t, (x, line) in enumerate(zip(inputs(900), lines, strict=False)):
            before = session.ledger
            session.step(x=x)
            ledger = session.ledger
            refused = ledger.suppressed_writes > before.suppressed_writes
            result = 2 if refused else ledger.writes - before.writes
            assert line.split() == [str(result).encode(), str(ledger.appends).encode()], t
            results.add(result)
            if (t + 1) % 5 == 4 and session.rewindable_steps:
                session.rewind(1)
    assert results == {0, 1, 2}


def test_a_ring_without_a_cursor_is_refused() -> None:
    with pytest.raises(SpecError, match="no rows"):
        StateSpec("ring", (3,), cursor="waiting")
