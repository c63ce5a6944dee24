"""What a step allocates: Python's part traced, the native part counted under LD_PRELOAD."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from stategate.bench.measure.driver import Driver
from stategate.bench.record import Allocations
from stategate.common.compiler import compile_library
from stategate.contract.errors import BuildError
from stategate.contract.staging import scratch_folder

STEPS = 2000


@contextmanager
def counter() -> Iterator[Path]:
    """The counting library, compiled for this machine."""
    source = (resources.files("stategate.bench.measure") / "malloc_count.c").read_bytes()
    # Its malloc is to be found by everybody else, which is the point of it.
    compiled = compile_library(
        {"malloc_count.c": source},
        cc=os.environ.get("CC", "cc"),
        extra=("-fvisibility=default", "-O2", "-fno-builtin"),
    )
    with scratch_folder() as folder:
        library = Path(folder) / "malloc_count.so"
        library.write_bytes(compiled.library)
        yield library


def measure_allocations(
    driver: Driver,
    open_driver: Callable[..., Driver],
    notes: list[str],
    steps: int = STEPS,
    *,
    with_python: bool = True,
) -> Allocations:
    """Count after everything was timed, because counting slows a step down."""
    traced, _ = driver.ask("traced", steps=steps)
    native: dict[str, Any] | None = None
    everything: dict[str, Any] | None = None
    try:
        with counter() as library:
            preload = {"LD_PRELOAD": str(library)}
            with open_driver(env=preload) as counted:
                native, _ = counted.ask("mallocs", steps=steps)
            if with_python:
                with open_driver(env={**preload, "PYTHONMALLOC": "malloc"}) as counted:
                    everything, _ = counted.ask("mallocs", steps=steps)
    except BuildError as problem:
        note = "native allocations are not measured: " + " ".join(str(problem).split())
        if note not in notes:
            notes.append(note)
    return Allocations(
        steps=steps,
        native_per_step=native["calls"] / steps if native else None,
        native_bytes_per_step=native["bytes"] / steps if native else None,
        all_per_step=everything["calls"] / steps if everything else None,
        python_peak_bytes=traced["peak_bytes"],
        python_blocks_kept=traced["kept"],
    )
