from __future__ import annotations

import time
from pathlib import Path

import pytest

from stategate.bench.measure.sensors import Meter, core_mhz, rails, temperatures


def put(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """An Orin NX: one INA3221 whose first channel is the whole module, at 5.04 V and 1.6 A."""
    chip = "sys/class/hwmon/hwmon3"
    channels = {
        1: ("VDD_IN", 5040, 1600),
        2: ("VDD_CPU_GPU_CV", 5040, 400),
        3: ("VDD_SOC", 5040, 1),
    }
    files: dict[str, object] = {
        f"{chip}/name": "ina3221",
        f"{chip}/in7_label": "sum of shunt voltages",
    }
    for i, (label, millivolts, milliamperes) in channels.items():
        files |= {
            f"{chip}/in{i}_label": label,
            f"{chip}/in{i}_input": millivolts,
            f"{chip}/curr{i}_input": milliamperes,
        }
    return put(tmp_path, files)


@pytest.fixture
def pc(tmp_path: Path) -> Path:
    package = "sys/class/powercap/intel-rapl:0"
    files = {"name": "package-0", "energy_uj": 1_000_000, "max_energy_range_uj": 10_000_000}
    return put(tmp_path, {f"{package}/{name}": value for name, value in files.items()})


def test_the_rail_of_the_whole_module_stands_for_all_of_them(orin: Path) -> None:
    (rail,) = rails(orin)
    assert rail.name == "VDD_IN"
    assert rail.watts() == pytest.approx(5.04 * 1.6)


def test_rails_that_have_no_whole_are_added_up(tmp_path: Path) -> None:
    files: dict[str, object] = {}
    for chip, labels in (("hwmon1", ("GPU", "CPU")), ("hwmon2", ("SOC",))):
        files[f"sys/class/hwmon/{chip}/name"] = "ina3221"
        for i, label in enumerate(labels, 1):
            files[f"sys/class/hwmon/{chip}/in{i}_label"] = label
            files[f"sys/class/hwmon/{chip}/in{i}_input"] = 10_000
            files[f"sys/class/hwmon/{chip}/curr{i}_input"] = 100
    found = rails(put(tmp_path, files))
    assert [rail.name for rail in found] == ["GPU", "CPU", "SOC"]
    assert sum(rail.watts() for rail in found) == pytest.approx(3.0)


def test_the_old_kernel_of_a_nano_is_read_too(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names = {"rail_name_0": "POM_5V_IN", "in_power0_input": 2500, "rail_name_1": "POM_5V_GPU"}
    put(tmp_path, {f"{chip}/{name}": value for name, value in names.items()})
    (rail,) = rails(tmp_path)
    assert (rail.name, rail.watts()) == ("POM_5V_IN", 2.5)


def test_constant_power_adds_up_to_power_times_time(orin: Path) -> None:
    meter = Meter(orin)
    start = time.monotonic()
    time.sleep(0.5)
    joules, seconds = meter.joules(), time.monotonic() - start
    meter.close()
    # The last sample may be a twentieth of a second old, and late on a busy machine.
    assert joules is not None and 0 < joules <= 5.04 * 1.6 * (seconds + 0.1)
    assert meter.sensor == "INA3221: VDD_IN"


def test_a_counter_that_wraps_goes_on_counting(pc: Path) -> None:
    meter = Meter(pc)
    counter = pc / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.write_text("9000000\n")
    assert meter.joules() == pytest.approx(8.0)
    counter.write_text("500000\n")
    assert meter.joules() == pytest.approx(8.0 + 1.5)


@pytest.mark.parametrize("broken", ["gone", "nonsense"])
def test_a_sensor_that_vanishes_on_the_way_is_reported_and_gives_no_figure(
    pc: Path, broken: str
) -> None:
    meter = Meter(pc)
    assert meter.joules() is not None
    counter = pc / "sys/class/powercap/intel-rapl:0/energy_uj"
    if broken == "gone":
        counter.unlink()
    else:
        counter.write_text("no data\n")
    assert meter.joules() is None
    assert meter.lost is not None and "package-0" in meter.lost
    counter.write_text("2000000\n")
    assert meter.joules() is None, "what was lost in between is not known"


def test_a_rail_that_vanishes_ends_the_sampling(orin: Path) -> None:
    meter = Meter(orin)
    (orin / "sys/class/hwmon/hwmon3/curr1_input").unlink()
    end = time.monotonic() + 10
    while meter.lost is None and time.monotonic() < end:
        time.sleep(0.02)
    assert meter.joules() is None and meter.lost is not None
    meter.close()


def test_a_machine_without_sensors_says_which_were_looked_for(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    assert not meter and meter.joules() is None
    assert meter.sensor == "none: no INA3221 and no RAPL under /sys"
    assert temperatures(tmp_path) == {} and core_mhz(0, tmp_path) is None


def test_counters_for_administrators_are_distinguished_from_none(tmp_path: Path) -> None:
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir(parents=True)  # unreadable
    assert "administrators" in Meter(tmp_path).sensor


def test_temperatures_and_clocks_have_their_units(tmp_path: Path) -> None:
    zones, cpu = "sys/class/thermal", "sys/devices/system/cpu/cpu2/cpufreq"
    files = {
        f"{zones}/thermal_zone0/type": "cpu-thermal",
        f"{zones}/thermal_zone0/temp": 48_500,
        f"{zones}/thermal_zone1/type": "gpu-thermal",
        f"{cpu}/scaling_cur_freq": 1_984_000,
    }
    put(tmp_path, files)
    assert temperatures(tmp_path) == {"cpu-thermal": 48.5}
    assert core_mhz(2, tmp_path) == 1984.0
