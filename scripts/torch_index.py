"""Where `make` takes torch from: PyTorch's index of CPU builds, if it answers.

pip's own index serves a torch for CUDA to Linux machines, gigabytes that no verb here needs.
Prints the index's address, or nothing where pip's own is right; says which on standard error.
"""

from __future__ import annotations

import argparse
import sys
from urllib.error import URLError
from urllib.request import urlopen

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
TIMEOUT_S = 3.0


def cpu_index(asked: str, platform: str) -> tuple[str, str]:
    """The index to hand to pip, or an empty string; and one line that says why.

    Args:
        asked: Address that the user chose; ``none`` for pip's own; empty to look for CPU builds.
        platform: As ``sys.platform``; only Linux gets CUDA builds from pip's own index.
    """
    if asked == "none" or (not asked and platform != "linux"):
        return "", "torch comes from pip's own index"
    address = (asked or CPU_BUILDS).rstrip("/")
    try:
        with urlopen(f"{address}/torch/", timeout=TIMEOUT_S):
            return address, f"torch comes from {address}"
    except (URLError, TimeoutError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        return "", f"{address} does not answer ({reason}): torch comes from pip's own index"


def main() -> int:
    """Print the address for the Makefile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("asked", nargs="?", default="", help="an index, or none")
    asked = parser.parse_args().asked
    address, reason = cpu_index(asked, sys.platform)
    print(reason, file=sys.stderr)
    if asked and asked != "none" and not address:
        return 1  # what the user chose is not replaced in silence
    print(address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
