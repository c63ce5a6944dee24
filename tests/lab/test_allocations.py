from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lab.allocations import measure_mallocs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is here to count mallocs")
def test_mallocs_of_a_step_are_counted(tiny_bundle: Path) -> None:
    # ONNX Runtime allocates in every node; how often is its own affair.
    counts = measure_mallocs(tiny_bundle, "onnxruntime", 500)
    assert 1 < counts.native < counts.all
