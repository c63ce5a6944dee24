"""Resident memory that a bundle adds, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stategate.contract.c_library import Engine
from stategate.contract.errors import EngineError

STEPS = 100
# Both processes import the same; only one of them opens the bundle.
_SCRIPT = """
import json, sys
import numpy as np
if sys.argv[3] == "onnxruntime":
    import onnxruntime
else:
    import stategate.runtime.engines.native
from stategate.runtime.base.process import give_back_freed_memory, rss_bytes
from stategate.runtime.check.full_pool import begun
from stategate.runtime.session import Session
give_back_freed_memory()  # opening would, and it is not the bundle that freed it
imported = rss_bytes()
session = begun(Session.open(sys.argv[1], engine=sys.argv[3]))
inputs = {t.name: np.zeros(t.shape, t.dtype) for t in session.manifest.inputs}
for _ in range(int(sys.argv[2])):
    session.step(**inputs)
print(json.dumps({"imported": imported, "added": rss_bytes() - imported}))
"""


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory in bytes."""

    imported: int  # of Python with the runtime and the engine's library imported
    added: int  # what opening and stepping the bundle added


def measure_resident(bundle: Path, steps: int = STEPS, engine: Engine = "onnxruntime") -> Resident:
    """Open and step a bundle in a fresh process, and see what that adds."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(bundle), str(steps), engine],
        capture_output=True,
        text=True,
        # One thread: each further one of numpy's has a stack and an arena of its own.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        # The exception's own line; what it advises is indented below it.
        messages = [line for line in done.stderr.splitlines() if line and line[0] != " "]
        raise EngineError("the bundle could not be stepped", found=(messages or ["no message"])[-1])
    return Resident(**json.loads(done.stdout))
