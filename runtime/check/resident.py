"""What a bundle adds to the memory of a process: measured in a process of its own."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from stategate.contract import Bundle
from stategate.runtime.base.process import peak_rss_bytes, rss_bytes

_MEASURED_STEPS = 50


def measure(path: Path, engines: list[str]) -> dict[str, tuple[int, int]]:
    """Open a bundle twice in this process with each engine, and step its golden episode.

    Returns:
        Bytes by engine: what the first opening added to resident memory at its highest, and what
        the second one did.
    """
    from stategate.runtime.check.full_pool import open_stepper

    added = {}
    golden = Bundle.open(path).golden()
    steps = list(islice(golden, _MEASURED_STEPS)) if golden is not None else []
    with ExitStack() as opened:
        for engine in engines:
            added_bytes = []
            for _ in range(2):
                before, peak = rss_bytes(), peak_rss_bytes()
                stepper = open_stepper(path, engine=engine)
                opened.callback(stepper.close)
                for inputs in steps:
                    stepper.step(**inputs)
                highest = peak_rss_bytes()
                added_bytes.append((highest if highest > peak else rss_bytes()) - before)
            added[engine] = (added_bytes[0], max(0, added_bytes[1]))
    return added


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2:])))
