"""Published reference code, loaded so that it runs on a CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fla_naive() -> Callable[[str], ModuleType]:
    """Loads ``fla/ops/<name>/naive.py`` of fla-core by its path: importing fla.ops needs Triton."""

    def load(name: str) -> ModuleType:
        found = importlib.util.find_spec("fla")
        assert found is not None and found.submodule_search_locations
        path = Path(found.submodule_search_locations[0]) / "ops" / name / "naive.py"
        spec = importlib.util.spec_from_file_location(f"_oracle_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def no_fla(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps transformers on its own torch code.

    Where it finds fla it calls Triton kernels, and where it finds the package xlstm it asks for
    kernels whose licence is not free.
    """
    if sys.version_info < (3, 11):
        pytest.skip("transformers 5.23 needs Python 3.11")
    import transformers.utils

    monkeypatch.setattr(transformers.utils, "is_xlstm_available", lambda: False)
    monkeypatch.setitem(sys.modules, "fla", None)
