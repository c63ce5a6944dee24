"""The one way in which this house runs an ONNX graph in ONNX Runtime."""

from __future__ import annotations

import os
from typing import TypeVar


def silence() -> None:
    """Keep ONNX Runtime from collecting telemetry; every room that imports it calls this first.

    Its wheels of 1.32 look for the variable while they are imported. Without it they start a
    thread, write a database below ``$HOME`` and look up a host. ``ORT_DISABLE_TELEMETRY=0`` asks
    for that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


Options = TypeVar("Options")


def one_thread(options: Options) -> Options:
    """Set an ``onnxruntime.SessionOptions`` to one quiet thread, with sums in float32.

    The library itself is not imported here, because few devices that need this room have it.
    """
    settings = {
        # A spinning thread would take the core from the control loop.
        "session.intra_op.allow_spinning": "0",
        # Weights stored as integers are multiplied in float32 (level 1). The default quantises the
        # activations beside them to int8, which no precision recipe asked for.
        "session.qdq_matmulnbits_accuracy_level": "1",
    }
    for name, value in settings.items():
        options.add_session_config_entry(name, value)  # type: ignore[attr-defined]
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # type: ignore[attr-defined]
    # Its log prints names from a file as they are; errors are raised anyway.
    options.log_severity_level = 4  # type: ignore[attr-defined]
    return options
