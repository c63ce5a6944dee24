from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stategate.contract.errors import TargetError
from stategate.contract.precision import PRESETS
from stategate.targets import generic, load, names, recognise, storage_names, toml_tables

ROOT = Path(__file__).parents[2]
WANTED = {
    "jetson-nano", "jetson-tx2-8gb", "jetson-xavier-nx-8gb", "jetson-agx-xavier-32gb",
    "jetson-orin-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb",
    "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-thor-t4000", "jetson-thor-t5000",
    "raspberry-pi-4", "raspberry-pi-5", "cpu-x86-64", "cpu-aarch64", "cortex-m7",
}  # fmt: skip


def test_every_device_of_the_list_is_there() -> None:
    assert set(names()) >= WANTED


@pytest.mark.parametrize("name", names())
def test_every_profile_loads_and_is_named_after_its_file(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert set(profile.storage.value or ()) <= set(storage_names())


@pytest.mark.parametrize("name", names())
def test_every_figure_has_a_source_and_a_date_beside_it(name: str) -> None:
    text = (ROOT / "targets" / "profiles" / f"{name}.toml").read_text()
    for table in re.split(r"^\[", text, flags=re.M)[1:]:
        assert re.search(r'^source = "..', table, re.M), table
        assert re.search(r"^date = 20\d\d-\d\d-\d\d$", table, re.M), table


@pytest.mark.parametrize("name", names())
def test_the_bandwidth_of_a_table_is_that_of_its_memory(name: str) -> None:
    """Widths and rates are published beside the bandwidth; both must give the same figure."""
    profile = load(name)
    width_and_rate = {  # bits, 10^6 transfers a second
        "jetson-nano": (64, 3200), "jetson-tx2-8gb": (128, 3732),
        "jetson-agx-xavier-32gb": (256, 4266), "jetson-agx-orin-64gb": (256, 6400),
        "jetson-orin-nano-8gb": (128, 6400), "jetson-thor-t5000": (256, 8533),
        "raspberry-pi-4": (32, 3200), "raspberry-pi-5": (32, 4267),
    }  # fmt: skip
    if name in width_and_rate:
        bits, rate = width_and_rate[name]
        assert profile.peak_bandwidth_gb_per_s == pytest.approx(bits / 8 * rate / 1e3, rel=0.01)


def test_an_unknown_figure_is_none_and_still_says_where_it_was_looked_for() -> None:
    figure = load("jetson-nano").system_reserve_bytes
    assert figure.value is None
    assert len(figure.source) > 20


def test_this_machine_is_recognised() -> None:
    assert generic().machine == platform.machine()


def test_an_unknown_machine_is_not_guessed() -> None:
    with pytest.raises(TargetError, match="riscv64"):
        generic("riscv64")


@pytest.mark.parametrize(
    ("compatible", "name"),
    [
        (("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"), "jetson-orin-nano-8gb"),
        (("nvidia,p3768-0000+p3767-0001", "nvidia,tegra234"), "jetson-orin-nx-8gb"),
        (("nvidia,p4071-0000+p3834-0008", "nvidia,tegra264"), "jetson-thor-t5000"),
        (("raspberrypi,5-model-b", "brcm,bcm2712"), "raspberry-pi-5"),
        (("nvidia,p3737-0000+p3701-0000", "nvidia,tegra234"), None),
        ((), None),
    ],
)
def test_a_board_is_recognised_by_its_module_and_not_by_its_chip(
    compatible: tuple[str, ...], name: str | None
) -> None:
    profile = recognise(compatible)
    assert (profile.name if profile else None) == name


def test_an_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(TargetError, match="cpu-x86-64"):
        load("cpu-x86")
    with pytest.raises(TargetError, match="jetson-orin-nano-8gb"):
        load("jetson-orin-nano")


def test_a_precision_is_legal_by_engine_and_the_refusal_says_who_says_so() -> None:
    orin = load("jetson-orin-nano-8gb")
    orin.check(PRESETS["int8"])
    with pytest.raises(TargetError, match="int4 was not tried"):
        orin.check(PRESETS["int4-weights"])
    orin.check(PRESETS["int4-weights"], "tensorrt")
    with pytest.raises(TargetError, match=r"Python 3\.6"):
        load("jetson-nano").check(PRESETS["float32"])
    with pytest.raises(TargetError, match="does not name abacus"):
        orin.check(PRESETS["float32"], "abacus")


Edit = Callable[[str, str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Replaces text in one profile of a copy, and reads from that copy from then on."""
    copy = tmp_path / "targets"
    shutil.copytree(ROOT / "targets", copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(toml_tables.resources, "files", lambda _: copy)

    def replace(name: str, old: str, new: str) -> None:
        path = copy / "profiles" / f"{name}.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return replace


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('value = ["float32", "float16", "bfloat16"', 'value = ["float8"', "engines.tensorrt"),
        ('value = ["float32", "float16", "int8"]', 'value = ["float31"]', "engines.onnxruntime"),
        ("value = 755_", "value = 98_755_", "system_reserve_bytes"),
        ("sparse = 40.0", "sparse = 14.0", "tops"),
        ('precision = "int8"', 'precision = "float4"', "tops: float4 the accelerator has not"),
        ('mode = "MAXN_SUPER"', 'mode = "MAXM"', "bandwidth.mode"),
        ('mode = "MAXN_SUPER"', 'mode = "15W"', "bandwidth: two figures for one power mode"),
        ('sparse = 40.0\nmode = "15W"', 'mode = "MAXN_SUPER"\nsparse = 40.0', "tops: two figures"),
        ('name = "7W"', 'name = "15W"', "power_modes"),
        ("default = false", "default = true", "power_modes"),
        ('"nvme-1tb"', '"tape"', "storage"),
        ('"6.2.1"', '"6.2.11"', "jetpack"),
        ("value = 8_589_934_592", "value = -1", "memory_bytes.value"),
        ("value = 8_589_934_592", 'value = "much"', "memory_bytes.value"),
        ("gb_per_s = 68.0", "gb_per_s = nan", "bandwidth"),
        ("cuda_cores = 1_024", "cuda_cores = 1_024\ncolour = 3", "colour"),
        ("date = 2026-11-22\n", "", "date"),
        ("[memory_bytes]", "[memory]", "memory"),
        ("[memory_bytes]", "[memory_bytes", "line"),
    ],
)
def test_a_contradiction_is_refused_by_file_and_field(
    edit: Edit, old: str, new: str, field: str
) -> None:
    edit("jetson-orin-nano-8gb", old, new)
    with pytest.raises(TargetError) as refusal:
        load("jetson-orin-nano-8gb")
    assert "profiles/jetson-orin-nano-8gb.toml" in str(refusal.value)
    assert field in str(refusal.value)


def test_a_file_about_another_device_is_refused(edit: Edit) -> None:
    edit("jetson-nano", 'name = "jetson-nano"', 'name = "jetson-nanu"')
    with pytest.raises(TargetError, match="jetson-nanu"):
        load("jetson-nano")


def test_what_an_editor_leaves_beside_a_profile_is_no_device(tmp_path: Path, edit: Edit) -> None:
    before = names()
    for left in ("jetson-nano.toml~", ".#jetson-nano.toml", "notes.txt"):
        (tmp_path / "targets" / "profiles" / left).touch()
    assert names() == before
