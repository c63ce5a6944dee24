"""Where a measurement is made: facts, versions, load, clocks, temperatures and energy.

Everything is read without privileges, and what is missing is said to be.

Sources: the kernel's documentation of ``hwmon`` (``in*_input`` in mV, ``curr*_input`` in mA,
``in*_label``), of the power capping framework (``energy_uj``, which wraps at
``max_energy_range_uj``), of thermal zones (``temp`` in 1/1000 degree) and of cpufreq. Jetsons carry
INA3221 chips: one rail of the whole module (``VDD_IN``, ``POM_5V_IN`` or ``5V_IN``), or on the AGX
boards several that add up to it. Their old kernels (JetPack 4) show them under
``ina3221x/*/iio:device*`` instead, as ``rail_name_*`` and ``in_power*_input`` in mW.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from stategate.bench.record import Moment
from stategate.targets.detect import detect

_WHOLE = ("VDD_IN", "POM_5V_IN", "5V_IN")
_SUM = "sum of shunt voltages"  # a channel of the chip, not a rail
_PERIOD_S = 0.05
_LIBRARIES = ("stategate", "numpy", "onnxruntime", "tensorrt")
# Attributes that a sensor may lose on the way: the file goes, or answers with an error.
_LOST_SENSOR = (OSError, ValueError)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except _LOST_SENSOR:
        return None


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail of an INA3221."""

    name: str  # its label
    watts: Callable[[], float]  # reads its power; raises OSError or ValueError once it is gone


def rails(root: Path = Path("/")) -> list[Rail]:
    """Rails that together make the module: the one of the whole, or all there are."""
    channels = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if _text(chip / "name") == "ina3221":
            for label in sorted(chip.glob("in*_label")):
                channel = label.name.removeprefix("in").removesuffix("_label")
                name, current = _text(label), chip / f"curr{channel}_input"
                if name and name.lower() != _SUM and current.exists():
                    volts = chip / f"in{channel}_input"
                    channels.append(Rail(name, lambda v=volts, a=current: _product(v, a)))  # type: ignore[misc]
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        for label in sorted(chip.glob("rail_name_*")):
            power = chip / f"in_power{label.name.removeprefix('rail_name_')}_input"
            if power.exists():
                channels.append(Rail(_text(label) or label.name, lambda p=power: _milli(p)))  # type: ignore[misc]
    return [rail for rail in channels if rail.name in _WHOLE] or channels


def _milli(path: Path) -> float:
    return int(path.read_text()) / 1000


def _product(volts: Path, amperes: Path) -> float:
    return _milli(volts) * _milli(amperes)


class Meter:
    """Joules since it was made, from whatever measures energy or power here.

    Attributes:
        sensor: What that is, or ``none`` and why.
        lost: Why it stopped, or None.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.lost: str | None = None
        self._joules, self._stop = 0.0, threading.Event()
        self._rails = rails(root)
        self._domains = [] if self._rails else _domains(root)
        self._thread: threading.Thread | None = None
        if self._rails:
            self.sensor = "INA3221: " + " + ".join(rail.name for rail in self._rails)
            self._thread = threading.Thread(target=self._integrate, daemon=True)
            self._thread.start()
        elif self._domains:
            self.sensor = "RAPL: " + " + ".join(domain.name for domain in self._domains)
        else:
            self.sensor = "none: " + _why_none(root)

    def __bool__(self) -> bool:
        return bool(self._rails or self._domains)

    def joules(self) -> float | None:
        """Energy so far; None without a sensor, and from the moment on that it is lost."""
        if self.lost is not None or not self:
            return None
        for domain in self._domains:
            try:
                self._joules += domain.joules()
            except _LOST_SENSOR as problem:
                self.lost = f"{domain.name}: {problem}"
                return None
        return self._joules

    def _integrate(self) -> None:
        """Add up the power of all rails, sampled twenty times a second."""
        then, before = time.monotonic(), None
        while not self._stop.wait(_PERIOD_S):
            try:
                watts = sum(rail.watts() for rail in self._rails)
            except _LOST_SENSOR as problem:
                self.lost = f"{self.sensor}: {problem}"
                return
            now = time.monotonic()
            self._joules += (watts if before is None else (watts + before) / 2) * (now - then)
            then, before = now, watts

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


class _Domain:
    """A RAPL package: a counter of microjoules that wraps."""

    def __init__(self, folder: Path) -> None:
        self.name = (folder / "name").read_text().strip()
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())

    def joules(self) -> float:
        """Energy since the last call."""
        now = int(self._counter.read_text())
        used = now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return used / 1e6


def _domains(root: Path) -> list[_Domain]:
    """Packages only: cores, graphics and memory are inside of them or overlap."""
    domains = []
    for folder in sorted(root.glob("sys/class/powercap/intel-rapl:?")):
        try:
            domains.append(_Domain(folder))
        except _LOST_SENSOR:  # newer kernels show the counter to administrators alone
            continue
    return domains


def _why_none(root: Path) -> str:
    if list(root.glob("sys/class/powercap/intel-rapl:?")):
        return "RAPL is there, but its counters are for administrators (energy_uj)"
    return "no INA3221 and no RAPL under /sys"


def temperatures(root: Path = Path("/")) -> dict[str, float]:
    """Degrees Celsius by the type of each thermal zone; a zone that does not answer is left out."""
    degrees = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        kind, value = _text(zone / "type"), _text(zone / "temp")
        if kind is not None and value is not None and value.lstrip("-").isdigit():
            degrees[kind] = int(value) / 1000
    return degrees


def core_mhz(core: int, root: Path = Path("/")) -> float | None:
    """Clock of a core as cpufreq shows it; None where it does not, as in most virtual machines."""
    value = _text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
    return int(value) / 1000 if value and value.isdigit() else None


def moment(at_s: float, core: int | None, root: Path = Path("/")) -> Moment:
    """What moves while a measurement runs."""
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    return Moment(at_s, load, core_mhz(core or 0, root), temperatures(root))


def facts(root: Path = Path("/")) -> dict[str, str | int | float | None]:
    """What does not change: `stategate.targets.detect`, a list being one text."""
    return {
        name: "; ".join(value) if isinstance(value, tuple) else value
        for name, value in asdict(detect(root)).items()
    }


def versions() -> dict[str, str]:
    """Python, and those of the libraries that are installed here."""
    installed = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
