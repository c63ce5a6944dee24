"""Where a measurement is made: what stays, and what moves while it runs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from stategate.bench.measure.sensors import core_mhz, temperatures
from stategate.targets.detect import detect

_LIBRARIES = ("stategate", "numpy", "onnxruntime", "tensorrt")


def facts(root: Path = Path("/")) -> dict[str, str | int | float | None]:
    """What does not change: `stategate.targets.detect`, a list being one text."""
    return {
        name: "; ".join(value) if isinstance(value, tuple) else value
        for name, value in asdict(detect(root)).items()
    }


def versions() -> dict[str, str]:
    """Python, and those of the libraries that are installed here."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def moment(at_s: float, core: int | None, root: Path = Path("/")) -> dict[str, Any]:
    """What moves: a `stategate.bench.record.Moment` as a dict."""
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    return {
        "at_s": at_s,
        "load": load,
        "mhz": core_mhz(core or 0, root),
        "celsius": temperatures(root),
    }
