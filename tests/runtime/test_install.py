"""Installations: an update is tried beside what runs, acts, and stays or is taken back."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from stategate import Installation, Session, Trial, install, release
from stategate.contract import Budget, Bundle, StateSpec
from stategate.contract.errors import BundleError, InstallError, SpecError
from stategate.contract.migration import Migration, StateOrigin
from stategate.runtime.install import install as installing
from stategate.runtime.install import unpack as unpacking
from stategate.runtime.install.decide import Event
from stategate.runtime.install.install import confirm, go_back, status
from stategate.runtime.install.record import InstallFolder
from stategate.runtime.install.shadow import Shadow

SHORT = Trial(shadow_steps=64, steps=96)


def inputs(seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    while True:
        yield {"x": rng.standard_normal((1, 4)).astype(np.float32)}


class Both:
    """An installation, and a session of its first bundle that no update ever touched."""

    def __init__(self, folder: Path, plain: Session, **opening: object) -> None:
        self.robot, self.plain = Installation.open(folder, **opening), plain
        self.inputs = inputs()
        self.phases: list[str] = []

    def step(self, same: bool = True, **x: np.ndarray) -> None:
        x = x or next(self.inputs)
        answer = self.robot.step(**x)["y"]
        expected = self.plain.step(**x)["y"]
        time.sleep(0.0002)  # as a loop of a robot does, so that a shadow keeps pace
        assert not same or np.array_equal(answer, expected)
        if self.robot.phase not in self.phases[-1:]:
            self.phases.append(self.robot.phase)

    def until(self, phase: str, same: bool = True, most: int = 20_000) -> None:
        for _ in range(most):
            self.step(same)
            if self.robot.phase == phase:
                return
        raise AssertionError(f"{self.phases}: {self.robot.why}")

    def close(self) -> None:
        self.robot.close()
        self.plain.close()


@pytest.fixture(scope="module")
def sealed(
    tmp_path_factory: pytest.TempPathFactory, seal_model: Callable, tiny_model: type
) -> Callable[..., Path]:
    """Seals the tiny model with its weights scaled, or of a class of its own."""

    def seal(scale: float = 1.0, kind: type = tiny_model) -> Path:
        model = kind()
        with torch.no_grad():
            model.mix.weight.mul_(scale)
        return seal_model(tmp_path_factory.mktemp("sealed") / "bundle", model).path

    return seal


@pytest.fixture(scope="module")
def other_weights(sealed: Callable[..., Path]) -> Path:
    return sealed(1.001)


@pytest.fixture(scope="module")
def brittle(sealed: Callable[..., Path], tiny_model: type) -> Path:
    class Brittle(tiny_model):
        """The same numbers, and NaN where an input is above 5."""

        def step(self, inputs: dict, states: dict) -> object:
            result = super().step(inputs, states)
            result.outputs["y"] = result.outputs["y"] + 0 * torch.sqrt(5 - inputs["x"][:, 1:2])
            return result

    return sealed(kind=Brittle)


@pytest.fixture
def second(tiny_bundle: Path, copy_of: Callable[[Path], Path]) -> Bundle:
    """The same model as release 2."""
    return release(copy_of(tiny_bundle), 2)


@pytest.fixture
def folder(tmp_path: Path, tiny_bundle: Path) -> Path:
    install(tiny_bundle, tmp_path / "robot")
    return tmp_path / "robot"


@pytest.fixture
def both(folder: Path, tiny_bundle: Path) -> Iterator[Both]:
    with closing(Both(folder, Session.open(tiny_bundle))) as pair:
        yield pair


def test_an_update_of_the_same_weights_changes_no_bit_of_any_answer_and_no_counter(
    both: Both, folder: Path, second: Bundle
) -> None:
    both.step()
    install(second, folder, trial=SHORT)
    both.until("trial")
    assert both.robot.manifest.release == 2
    both.until("steady")
    for _ in range(50):
        both.step()
    assert both.phases == ["steady", "staged", "trial", "steady"]
    assert "the memory goes on: its schema is the same" in both.robot.why
    robot, plain = both.robot.ledger, both.plain.ledger
    for name in ("steps", "writes", "quiet_steps", "memory_bytes_written", "gate_openings"):
        assert getattr(robot, name) == getattr(plain, name), name
    assert Installation.go_back(folder).runs == "a"
    for _ in range(40):
        both.robot.step(**next(both.inputs))
    assert both.robot.manifest.release == 0


def test_counters_and_bytes_on_flash_go_on_over_updates_and_restarts(
    both: Both, folder: Path, second: Bundle
) -> None:
    both.robot.save()
    install(second, folder, trial=SHORT)
    both.until("trial")
    both.until("steady")
    both.robot.save()
    live = both.robot.ledger
    both.robot.close()
    assert Installation.status(folder).ledger.persisted_bytes == live.persisted_bytes > 0
    with Installation.open(folder) as again:
        assert again.ledger.steps == live.steps == both.plain.ledger.steps
        assert again.ledger.persisted_bytes == live.persisted_bytes
    install(release(second, 3), folder)  # the slot of release 0 and its memory are x up
    status = Installation.status(folder).ledger
    assert (status.steps, status.persisted_bytes) == (live.steps, live.persisted_bytes)


def test_an_update_that_answers_otherwise_is_refused_and_never_acts(
    both: Both, folder: Path, sealed: Callable[..., Path]
) -> None:
    install(sealed(-3.0), folder, trial=SHORT)
    both.until("staged")
    both.until("steady")
    for _ in range(40):
        both.step()
    assert both.phases == ["staged", "steady"] and "refused: difference" in both.robot.why


def test_a_step_that_fails_on_trial_is_answered_by_the_bundle_before(
    both: Both, folder: Path, brittle: Path
) -> None:
    install(brittle, folder, trial=SHORT)
    both.until("trial")
    assert both.robot.bundle_digest == Bundle.open(brittle).digest
    both.step(x=np.full((1, 4), 6.0, np.float32))
    assert both.robot.bundle_digest == Bundle.open(folder / "a").digest
    both.until("steady")
    for _ in range(40):
        both.step()
    assert "NaN" in both.robot.why
    assert both.robot.ledger.steps == both.plain.ledger.steps + 1  # the one that failed counts


def test_a_bundle_that_writes_too_often_on_trial_is_taken_back(
    both: Both, folder: Path, second: Bundle
) -> None:
    install(second, folder, trial=Trial(64, steps=10_000, write_rate=0.6))
    both.until("trial")
    for _ in range(2000):  # inputs that open the gate in every step
        x = np.abs(next(both.inputs)["x"])
        both.step(x=x)
        if both.robot.phase == "steady":
            break
    assert "of steps write, at most 60.00% allowed" in both.robot.why
    both.step()


def test_three_starts_without_a_confirmation_are_enough(folder: Path, second: Bundle) -> None:
    install(second, folder, trial=Trial(32, steps=10**6))
    with Installation.open(folder) as robot:
        for x in inputs():
            robot.step(**x)
            if robot.phase == "trial":
                break
    for runs in (2, 2, 2, 0, 0):
        with Installation.open(folder) as robot:
            assert robot.manifest.release == runs
    assert "got no further" in Installation.status(folder).why


def test_a_memory_of_other_weights_is_not_handed_over_and_waits_for_the_way_back(
    both: Both, folder: Path, other_weights: Path
) -> None:
    for _ in range(10):
        both.step()
    install(other_weights, folder, trial=SHORT)
    both.until("trial", same=False)
    assert "begins anew: another schema" in both.robot.why
    assert both.robot.state("count") < both.plain.state("count")
    Installation.go_back(folder)
    both.until("steady", same=False)
    both.step()  # the bits of a session that never left


def test_a_migration_hands_a_memory_to_other_weights(
    both: Both, folder: Path, other_weights: Path, tiny_bundle: Path, copy_of: Callable
) -> None:
    both.step()
    update = release(copy_of(other_weights), 2, older=tiny_bundle)
    install(update, folder, trial=SHORT)
    both.until("trial", same=False)
    assert "as the bundle's migration says" in both.robot.why
    assert both.robot.state("count") == both.plain.state("count")


def test_a_migration_renames_casts_pads_crops_fills_and_drops() -> None:
    specs = (
        StateSpec("h", (1, 3), "float16"),
        StateSpec("n", (1, 2), "int32"),
        StateSpec("new", (1, 2)),
    )
    migration = Migration(
        "0" * 64,
        (StateOrigin("h", "old"), StateOrigin("n", "many", crop=True), StateOrigin("new", fill=7)),
        ("gone",),
    )
    older = {
        "old": np.array([[1.5, 2.5]], np.float32),
        "many": np.array([[4.0, 5.0, 6.0]]),
        "gone": np.zeros(1),
    }
    initial = {s.name: np.full(s.shape, 9, s.dtype) for s in specs}
    states = migration.apply(older, specs, initial)
    assert [states[s.name].tolist() for s in specs] == [[[1.5, 2.5, 9.0]], [[4, 5]], [[7.0, 7.0]]]
    assert [states[s.name].dtype for s in specs] == ["float16", "int32", "float32"]
    for fill in (float("nan"), 7.5, 1e12, -1):
        origins = (*migration.states[:2], StateOrigin("new", fill=fill))
        unsigned = (*specs[:2], StateSpec("new", (1, 2), "uint8"))
        with pytest.raises(SpecError, match="filled with"):
            Migration("0" * 64, origins, ("gone",)).try_on(
                [StateSpec(name, a.shape, str(a.dtype)) for name, a in older.items()], unsigned
            )
    for name, wrong in (("old", np.array([[2**24 + 1]])), ("many", np.array([[-1]], np.int8))):
        ends = (StateSpec("h", (1, 3)), StateSpec("n", (1, 2), "uint8"), specs[2])
        with pytest.raises(SpecError, match="without losing its value"):
            migration.apply(
                {**older, name: wrong}, ends, {s.name: np.zeros(s.shape, s.dtype) for s in ends}
            )
    for name, wrong in (("old", 1e6), ("many", 0.5), ("many", 1e12)):
        broken = {**older, name: np.full_like(older[name], wrong)}
        with pytest.raises(SpecError, match="without losing its value"):
            migration.apply(broken, specs, initial)
    with pytest.raises(SpecError, match="every older state"):
        migration.apply({**older, "more": np.zeros(1)}, specs, initial)


def test_an_older_release_needs_somebody_who_wants_it(
    folder: Path, tiny_bundle: Path, second: Bundle, copy_of: Callable
) -> None:
    shutil.rmtree(folder)
    install(second, folder)
    first = release(shutil.copytree(second, folder.parent / "first"), 1)
    with pytest.raises(InstallError, match="older than one that was confirmed"):
        install(first, folder)
    with pytest.raises(InstallError, match="who wants it"):
        install(first, folder, older="because")
    status = install(first, folder, older="ada: release 2 shakes")
    assert (status.phase, status.floor) == ("staged", 2) and "ada" in status.why


@pytest.mark.parametrize("slot", ["a", "b"])
def test_where_the_bytes_of_a_slot_rot_the_other_one_runs(
    both: Both, folder: Path, second: Bundle, slot: str
) -> None:
    install(second, folder, trial=SHORT)
    both.until("trial")
    both.robot.close()
    graph = next((folder / slot / "graphs").iterdir())
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    if slot == "a":  # nobody reads it while b runs on trial
        with Installation.open(folder) as robot:
            assert robot.manifest.release == 2
    else:
        with pytest.warns(UserWarning, match="slot b is damaged"):
            robot = Installation.open(folder)
        assert robot.manifest.release == 0
        robot.close()
    assert Installation.status(folder).slots["ab".index(slot)].problem is not None


def test_where_nothing_can_be_written_a_trial_does_not_run(
    folder: Path, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(second, folder, trial=SHORT)
    InstallFolder(folder).change(Event.AGREED, "")

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(InstallFolder, "write", read_only)
        with Installation.open(folder) as robot:
            for x in islice(inputs(), 80):
                robot.step(**x)
            assert robot.manifest.release == 0
    with Installation.open(folder) as robot:
        assert robot.manifest.release == 2


def test_a_folder_with_something_else_in_it_is_left_alone(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "diary.txt").write_text("mine")
    for verb in (partial(install, tiny_bundle), confirm, go_back, status):
        with pytest.raises(InstallError, match="holds something that is no installation"):
            verb(tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "diary.txt").read_text() == "mine"
    for verb in (Installation.confirm, Installation.status):
        with pytest.raises(InstallError, match="no such folder"):
            verb(tmp_path / "nowhere")


def test_a_signature_travels_and_what_the_manifest_does_not_list_stays_behind(
    tiny_bundle: Path, copy_of: Callable, tmp_path: Path
) -> None:
    bundle = copy_of(tiny_bundle)
    (bundle / "model.sig").write_text("signed")
    (bundle / "stray").write_text("nobody listed it")
    install(bundle, tmp_path / "robot")
    assert (tmp_path / "robot" / "a" / "model.sig").read_text() == "signed"
    assert not (tmp_path / "robot" / "a" / "stray").exists()


def test_rot_in_one_copy_of_the_record_is_harmless_and_in_both_is_an_error(folder: Path) -> None:
    record = folder / "installed"
    first, second, _ = record.read_bytes().split(b"\n")
    record.write_bytes(first.replace(b"steady", b"stead?").replace(b"a", b"b", 1) + b"\n" + second)
    assert Installation.status(folder).runs == "a"
    record.write_bytes(b"\n".join([first[:-1], second[:-1]]))
    with pytest.raises(InstallError, match="install .*a --into NEW"):
        Installation.open(folder)


@pytest.mark.parametrize(
    "limits",
    [
        {"difference": float("nan")},
        {"difference": float("inf")},
        {"write_rate": float("nan")},
        {"late": "1"},
        {"faults": 2.5},
        {"steps": -1},
        {"by_hand": "no"},
    ],
)
def test_a_limit_that_would_hold_nothing_back_or_cannot_be_read_again_is_none(
    limits: dict,
) -> None:
    with pytest.raises(SpecError):
        Trial(**limits)


@pytest.mark.parametrize("why", ["a\nb", "\udcff", "x" * 2_000_000, "\u202e"])
def test_a_reason_of_any_characters_leaves_a_record_that_can_be_read(
    folder: Path, second: Bundle, why: str
) -> None:
    install(second, folder, older=f"ada: {why}")
    assert Installation.status(folder).phase == "staged"
    with pytest.raises(msgspec.MsgspecError):  # and where all checks before it are forgotten
        InstallFolder(folder).change(Event.GO_BACK, "", write_rate=[])
    assert Installation.status(folder).phase == "staged"


def test_an_update_that_is_refused_on_trial_does_not_touch_the_budgets(
    folder: Path, second: Bundle, other_weights: Path
) -> None:
    budget = Budget(persisted_bytes_per_day=200_000)
    install(second, folder, trial=Trial(32, steps=10**6))
    with Installation.open(folder, budget=budget) as robot:
        for x in inputs():
            robot.step(**x)
            if robot.phase == "trial":
                break
        assert robot.save() is not None
        with pytest.raises(InstallError, match="on trial"):
            install(other_weights, folder)
        while robot.save() is not None:
            robot.step(**next(inputs()))
        accounts = list(folder.glob("memory/*/account"))
        Installation.go_back(folder)
        for x in islice(inputs(), 80):
            robot.step(**x)
        assert robot.manifest.release == 0 and robot.save() is None
    assert len(accounts) == 1
    with Installation.open(folder, budget=budget) as robot:
        assert robot.save() is None


def test_a_record_that_changes_while_a_bundle_is_put_in_is_obeyed(
    folder: Path, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, step = installing.check_replaces, installing._step_golden

    def confirmed(*arguments: object) -> None:
        place = InstallFolder(folder)
        place.change(Event.AGREED, "meanwhile")
        place.change(Event.CONFIRMED, "meanwhile")
        check(*arguments)

    install(second, folder)
    with monkeypatch.context() as patch:
        patch.setattr(installing, "check_replaces", confirmed)
        with pytest.raises(InstallError, match="changed meanwhile"):
            install(release(second, 3), folder)
    assert Bundle.open(folder / "b").digest == InstallFolder(folder).read().digests[1]
    assert Installation.status(folder).runs == "b"

    def taken_back(*arguments: object) -> None:
        Installation.go_back(folder)
        step(*arguments)

    monkeypatch.setattr(installing, "_step_golden", taken_back)
    with pytest.raises(InstallError, match="taken back meanwhile"):
        install(release(second, 4), folder)
    status = Installation.status(folder)
    assert (status.phase, status.runs, status.can_go_back) == ("steady", "b", False)


def test_a_slot_in_which_somebody_put_another_bundle_never_acts(
    both: Both, folder: Path, second: Bundle
) -> None:
    install(second, folder, trial=SHORT)
    with pytest.raises(BundleError, match="installed is not written again"):
        release(folder / "b", 3)
    third = release(shutil.copytree(second.path, folder.parent / "third"), 3)
    shutil.copytree(third, folder / "b", dirs_exist_ok=True)
    both.until("staged")
    both.until("steady")
    assert "another bundle than was installed" in both.robot.why
    install(second, folder, trial=SHORT)
    both.until("trial")
    both.until("steady")
    for _ in range(40):  # what left lets go of its folder
        both.step()
    shutil.copytree(third, folder / "a", dirs_exist_ok=True)
    Installation.go_back(folder)
    for _ in range(80):
        both.step()
    assert both.robot.manifest.release == 2


def test_a_full_disk_in_the_middle_leaves_what_runs(
    both: Both, folder: Path, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copied = unpacking._copy, []

    def full(source: Path, goal: Path) -> str:
        copied.append(goal)
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(goal))
        return copy(source, goal)

    monkeypatch.setattr(unpacking, "_copy", full)
    with pytest.raises(OSError, match="No space"):
        install(second, folder)
    status = Installation.status(folder)
    assert status.phase == "steady" and "No space" in status.why
    assert not (folder / "b").exists() and not list(folder.glob(".b*"))
    for _ in range(40):
        both.step()


def test_one_process_installs_and_one_runs(folder: Path, second: Bundle, both: Both) -> None:
    with pytest.raises(InstallError, match="another process is running"):
        Installation.open(folder)
    lock = InstallFolder(folder).exclusive("installing", "")
    with lock, pytest.raises(InstallError, match="another process is installing"):
        install(second, folder)
    both.step()


def test_budgets_are_not_filled_by_an_update(
    folder: Path, second: Bundle, tiny_bundle: Path
) -> None:
    budget = Budget(writes_per_1000_steps=100, persisted_bytes_per_day=200_000)
    install(second, folder, trial=Trial(32, steps=64))
    saved = steps = 0
    with Installation.open(folder, budget=budget) as robot:
        before = robot.ledger.writes
        for x, steps in zip(inputs(), range(1, 5000), strict=False):
            robot.step(x=np.abs(x["x"]))  # every step asks for a write
            saved += steps % 50 == 0 and robot.save() is not None
            if robot.manifest.release == 2 and robot.phase == "steady":
                break
        assert robot.manifest.release == 2, robot.why
        writes = robot.ledger.writes - before
        assert robot.ledger.suppressed_writes > 0
    assert writes <= 100 + steps * 0.1
    with Installation.open(folder, budget=budget) as robot:
        assert robot.save() is None


@pytest.mark.parametrize("limit", ["writes_per_1000_steps", "writes_per_second"])
def test_a_shadow_holds_back_the_same_writes_however_far_behind(
    folder: Path, second: Bundle, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lagging(call: Callable) -> Callable:
        def late(*arguments: object) -> object:
            time.sleep(0.003)
            return call(*arguments)

        return late

    install(second, folder, trial=Trial(32, steps=128, difference=0.0))
    with Installation.open(folder, budget=Budget(**{limit: 100})) as robot:
        monkeypatch.setattr(Installation, "_let_go", lagging(Installation._let_go))
        monkeypatch.setattr(Shadow, "_step", lagging(Shadow._step))
        for x, _ in zip(inputs(), range(4000), strict=False):
            robot.step(x=np.abs(x["x"]))  # every step asks for a write
            time.sleep(0.001)
            if "confirmed" in robot.why or "difference" in robot.why and robot.phase == "steady":
                break
        assert robot.ledger.suppressed_writes > 0
        assert "confirmed" in robot.why


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("target", {"name": "elsewhere", "machine": "pdp11", "isa": ""}, "another machine"),
        ("inputs", None, "other inputs"),
    ],
)
def test_a_bundle_for_another_machine_or_loop_is_refused(
    folder: Path, tiny_bundle: Path, copy_of: Callable, field: str, value: object, match: str
) -> None:
    update = copy_of(tiny_bundle)
    manifest = json.loads((update / "manifest.json").read_text())
    manifest[field] = value or [{**manifest["inputs"][0], "shape": [1, 5]}]
    raw = json.dumps(manifest).encode()
    (update / "manifest.json").write_bytes(raw)
    from stategate.contract.bundle import sha256

    (update / "manifest.sha256").write_text(f"{sha256(raw)}  manifest.json\n")
    with pytest.raises(InstallError, match=match):
        install(update, folder)
    assert Installation.status(folder).phase == "steady"
