"""What libraries report of a device to others: nothing, unless its owner asks for it."""

import os


def silence() -> None:
    """Keep ONNX Runtime from collecting telemetry; every room that imports it calls this first.

    Its wheels of 1.32 look for the variable while they are imported. Without it they start a
    thread, write a database below ``$HOME`` and look up a host. ``ORT_DISABLE_TELEMETRY=0`` asks
    for that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
