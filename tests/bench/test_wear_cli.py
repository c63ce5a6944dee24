from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from stategate import targets
from stategate.bench.wear import WriteRate, journal_rows, wear_rows, write_rate
from stategate.cli import wear as wear_cli
from stategate.cli.main import main
from stategate.common.flash import Storage, bytes_per_day, years_at
from stategate.common.wear_counters import DeviceWear
from stategate.contract import Bundle, GateSpec, Manifest, StateSpec, write_bundle
from stategate.runtime.keep.snapshot import Codec

RATED = Storage("rated", "test", endurance_bytes=10**14, assumed=())


def wear(bundle: Path, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["wear", str(bundle), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def report(bundle: Path, *arguments: object) -> Any:
    return json.loads(wear(bundle, *arguments, "--json"))


Changed = Callable[..., Path]


@pytest.fixture
def changed(tiny_bundle: Path, tmp_path: Path) -> Changed:
    """The tiny bundle with other fields in its manifest."""

    def change(**fields: object) -> Path:
        bundle = Bundle.open(tiny_bundle)
        content = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
        manifest = msgspec.structs.replace(bundle.manifest, **fields)
        return write_bundle(tmp_path / "changed", manifest, content).path

    return change


def rated_gate(rate: float | None, source: str | None = None, name: str = "gate") -> GateSpec:
    return GateSpec(name, "hard", (1, 1), 0.0, None, expected_write_rate=rate, expected_from=source)


def manifest_with(bundle: Path, *gates: GateSpec) -> Manifest:
    # Each hard gate guards a state of its own, or the contract would refuse it.
    hard = [gate.name for gate in gates if gate.kind == "hard"] or [None]
    states = tuple(StateSpec(f"h{i}", (1, 4), gate=name) for i, name in enumerate(hard))
    return msgspec.structs.replace(Bundle.open(bundle).manifest, gates=gates, states=states)


def test_each_policy_has_a_row_and_the_arithmetic_is_the_runtimes(tiny_bundle: Path) -> None:
    found = report(tiny_bundle, "--rate", 30, "--storage", "emmc-16gb", "--write-rate", 0.05)
    (table,) = found["tables"]
    rates = {row["policy"]: row["snapshots_per_second"] for row in table["rows"]}
    assert rates == {
        "every step": 30,
        "every write": 1.5,
        "once a second": 1,
        "every 10 s": 0.1,
        "every minute": 1 / 60,
    }
    size = found["snapshot_bytes"]
    assert size == Codec(Bundle.open(tiny_bundle).manifest).file_bytes
    assert table["host_bytes_per_snapshot"] == 8192 + 20480
    storage = targets.load_storage("emmc-16gb")
    for row in table["rows"]:
        daily = bytes_per_day(storage, size, row["snapshots_per_second"])
        assert row["years"] == years_at(storage, daily)
        assert row["bytes_per_day"] == 28672 * row["snapshots_per_second"] * 86400
        assert row["estimate"] is True


def test_the_text_names_the_source_and_what_is_assumed(tiny_bundle: Path) -> None:
    text = wear(tiny_bundle, "--rate", 30, "--storage", "emmc-16gb")
    assert "16 TBW" in text and "assumption: MLC" in text
    assert "pe_cycles, write_amplification, metadata_bytes" in text
    assert "4,148 bytes" in text


def test_figures_that_were_all_given_or_measured_are_no_estimate(tiny_bundle: Path) -> None:
    arguments = ("--rate", 30, "--tbw", 150, "--metadata-bytes", 4096, "--write-rate", 0.1)
    (table,) = report(tiny_bundle, *arguments)["tables"]
    assert not any(row["estimate"] for row in table["rows"])
    assert table["endurance_bytes"] == 150e12
    assert "assumed" not in wear(tiny_bundle, *arguments)


def test_a_slow_loop_takes_no_more_snapshots_than_steps() -> None:
    rows = wear_rows(RATED, 4096, 0.05, WriteRate(0.5, "test"))
    assert [row.snapshots_per_second for row in rows] == [0.05, 0.025, 0.05, 0.05, 1 / 60]


def test_a_gate_that_never_opens_lasts_for_ever(tiny_bundle: Path) -> None:
    assert wear_rows(RATED, 4096, 30, WriteRate(0.0, "test"))[1].years is None
    assert "for ever" in wear(tiny_bundle, "--rate", 30, "--tbw", 1, "--write-rate", 0)


def test_the_manifests_write_rate_is_used_with_its_source(changed: Changed) -> None:
    gate = GateSpec(
        "gate", "hard", (1, 1), 0.0, "threshold",
        expected_write_rate=0.125, expected_from="a calibration",
    )  # fmt: skip
    bundle = changed(gates=(gate,))
    assert "12.5% of steps (a calibration)" in wear(bundle, "--rate", 8, "--tbw", 1)
    rows = report(bundle, "--rate", 8, "--tbw", 1)["tables"][0]["rows"]
    assert rows[1]["snapshots_per_second"] == 1.0
    assert "write_rate" not in rows[1]["assumed"]


def test_a_rate_that_nobody_measured_is_taken_as_every_step_and_said_so(tiny_bundle: Path) -> None:
    text = wear(tiny_bundle, "--rate", 30, "--tbw", 1)
    assert "100.0% of steps (it was not measured how often gate opens" in text
    every_step, every_write, *rest = report(tiny_bundle, "--rate", 30, "--tbw", 1)["tables"][0][
        "rows"
    ]
    assert every_write["years"] == every_step["years"]
    assert "write_rate" in every_write["assumed"]
    assert not any("write_rate" in row["assumed"] for row in (every_step, *rest))


def test_several_gates_are_bounded_by_their_sum(tiny_bundle: Path) -> None:
    both = manifest_with(tiny_bundle, rated_gate(0.1), rated_gate(0.25, name="other"))
    assert write_rate(both) == WriteRate(0.35, "upper bound: the sum of 2 gates", assumed=True)
    busy = manifest_with(tiny_bundle, rated_gate(0.75), rated_gate(0.75, name="other"))
    assert write_rate(busy).share == 1.0
    half = manifest_with(tiny_bundle, rated_gate(0.1), rated_gate(None, name="other"))
    assert write_rate(half).share == 1.0 and "other opens" in write_rate(half).source


def test_a_model_without_a_hard_gate_writes_in_every_step(tiny_bundle: Path) -> None:
    for gates in ((), (GateSpec("soft", "soft"),)):
        found = write_rate(manifest_with(tiny_bundle, *gates))
        assert (found.share, found.assumed) == (1.0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "emmc-16gb", "--tbw", "16"], "--storage and --tbw"),
        (["--target", "cpu-aarch64", "--tbw", "16"], "--target and --tbw"),
        (["--storage", "emmc-16gb", "--target", "cpu-aarch64"], "--storage and --target"),
        (["--target", "cpu-aarch64"], "storage of target cpu-aarch64 is not known; give --storage"),
        ([], "is not known; give --storage (emmc-16gb"),
        (["--storage", "emmc-17gb"], "unknown storage"),
        (["--target", "abacus"], "unknown target"),
        (["--tbw", "nan"], "not a finite number"),
        (["--tbw", "0"], "--tbw"),
        (["--tbw", "1", "--write-rate", "1.5"], "--write-rate"),
        (["--tbw", "1", "--write-rate", "nan"], "not a finite number"),
        (["--tbw", "1", "--rate", "inf"], "not a finite number"),
        (["--tbw", "1", "--rate", "0"], "--rate"),
        (["--tbw", "1", "--path", "/no/such/folder"], "does not exist"),
    ],
)
def test_wrong_use_is_reported_and_exits_with_2(
    tiny_bundle: Path, arguments: list[str], message: str
) -> None:
    rate = [] if "--rate" in arguments else ["--rate", "30"]
    text = wear(tiny_bundle, *rate, *arguments, code=2)
    assert message in " ".join(text.split())


def test_a_rate_must_be_given(tiny_bundle: Path) -> None:
    assert "--rate" in wear(tiny_bundle, "--tbw", 1, code=2)


def test_a_bundle_that_was_altered_exits_with_1(
    tiny_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    copy = copy_of(tiny_bundle)
    graph = copy / "graphs" / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "DigestError" in wear(copy, "--rate", 30, "--tbw", 1, code=1)


def test_a_target_shows_a_table_for_each_of_its_media(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    generic = targets.load("cpu-aarch64")
    media = msgspec.structs.replace(generic.storage, value=("emmc-16gb", "nvme-1tb"))
    profile = msgspec.structs.replace(generic, storage=media)
    monkeypatch.setattr(targets, "load", lambda _: profile)
    bundle = changed(target=profile.ref())
    for arguments in (["--target", "cpu-aarch64"], []):
        found = report(bundle, "--rate", 30, *arguments)
        assert [t["storage"]["name"] for t in found["tables"]] == ["emmc-16gb", "nvme-1tb"]


def test_a_bundle_whose_target_has_no_known_storage_asks_for_one(
    tiny_bundle: Path, changed: Changed
) -> None:
    assert "bundle for any target" in wear(tiny_bundle, "--rate", 30, code=2)
    bundle = changed(target=targets.load("cpu-aarch64").ref())
    assert "target cpu-aarch64 is not known" in wear(bundle, "--rate", 30, code=2)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (DeviceWear("mmcblk0", "emmc", 1024, 30, "normal"), "at most 30 % of its rated life used"),
        (DeviceWear("mmcblk0", "emmc", 1024, 110, "urgent"), "its rated life is exceeded"),
        (DeviceWear("nvme0n1", "nvme", 1024), "says nothing of its wear, so the years are an est"),
        (DeviceWear(), "no single block device"),
    ],
)
def test_the_devices_own_counters_stand_beside_the_table(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, reading: DeviceWear, words: str
) -> None:
    monkeypatch.setattr(wear_cli, "read_wear", lambda _: reading)
    arguments = ("--rate", 30, "--tbw", 1, "--path", tiny_bundle)
    assert words in wear(tiny_bundle, *arguments)
    device = report(tiny_bundle, *arguments)["device"]
    assert device["life_used_percent"] == reading.life_used_percent
    assert device["estimate"] == (reading.life_used_percent is None)


def test_figures_need_neither_an_engine_nor_a_toml_reader(tiny_bundle: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'tomllib', 'tomli', 'matplotlib'): sys.modules[name] = None\n"
        "from stategate.cli.main import main\n"
        f"main(['wear', {str(tiny_bundle)!r}, '--rate', '30', '--tbw', '16'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "once a second" in done.stdout


def test_a_journal_costs_a_block_for_a_commit_and_its_share_of_a_snapshot(
    tiny_bundle: Path,
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    rows = journal_rows(RATED, manifest, 30, WriteRate(0.1, "test"))
    assert [row.snapshots_per_second for row in rows] == pytest.approx([3, 1, 1 / 10, 1 / 60])
    for row in rows:
        each = row.bytes_per_day / row.snapshots_per_second / 86400
        assert 4096 < each < 4096 * 1.04
        assert row.years == pytest.approx(10**14 / row.bytes_per_day / 365.25)
    assert rows[0].policy == "journal, every write"
