"""What a bundle adds to the memory of a process, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stategate.common.build_time import may_measure
from stategate.common.c_library import load_obstacle
from stategate.contract import Bundle
from stategate.runtime.trust.code import VARIABLE, accept, code_digest

_ROUND_BYTES = 1 << 20
_LONGEST_S = 600


def added_memory(bundle: Bundle) -> dict[str, tuple[int, int]]:
    """Bytes by engine, rounded up to MiB; see `Manifest.resident`.

    Nothing is measured where SOURCE_DATE_EPOCH asks for the same bytes every time, nor where the
    bundle cannot be stepped here: the budget is then held by looking after the engine is loaded.
    """
    if not may_measure():
        return {}
    # The native library first: with the other engine's beside it, it would be measured the same.
    native = bundle.manifest.native
    able = native is not None and native.library is not None and load_obstacle(native) is None
    engines = ["native", "onnxruntime"] if able else ["onnxruntime"]
    command = [sys.executable, "-m", "stategate.runtime.check.resident", str(bundle.path), *engines]
    try:
        trials = os.environ | {VARIABLE: f"{bundle.path}.accepted"}
        if digest := code_digest(bundle.manifest):
            accept(digest, "trial", Path(trials[VARIABLE]))
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LONGEST_S, env=trials
        )
        bytes_of: dict[str, list[int]] = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}
    return {engine: (_rounded(once), _rounded(again)) for engine, (once, again) in bytes_of.items()}


def _rounded(count: int) -> int:
    return -(-count // _ROUND_BYTES) * _ROUND_BYTES
