"""What a bundle adds to the memory of a process, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from stategate.common.c_library import why_not_here
from stategate.contract import Bundle

_ROUND_BYTES = 1 << 20
_LONGEST_S = 600


def measured(bundle: Bundle) -> dict[str, tuple[int, int]]:
    """Bytes by engine, rounded up to MiB; see `Manifest.resident`.

    Nothing is measured where SOURCE_DATE_EPOCH asks for the same bytes every time, nor where the
    bundle cannot be stepped here: the budget is then held by looking after the engine is loaded.
    """
    if "SOURCE_DATE_EPOCH" in os.environ:
        return {}
    command = [
        sys.executable,
        "-m",
        "stategate.runtime.check.resident",
        bundle.path,
        *_here(bundle),
    ]
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=_LONGEST_S
        )
        found: dict[str, list[int]] = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}
    return {engine: (_rounded(first), _rounded(again)) for engine, (first, again) in found.items()}


def _here(bundle: Bundle) -> list[str]:
    # The native library first: with the other engine's beside it, it would be measured the same.
    native = bundle.manifest.native
    able = native is not None and native.library is not None and why_not_here(native) is None
    return [*(["native"] if able else []), "onnxruntime"]


def _rounded(count: int) -> int:
    return -(-count // _ROUND_BYTES) * _ROUND_BYTES
