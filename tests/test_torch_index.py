"""`make` asks for CPU builds of torch before it downloads gigabytes for CUDA."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "torch_index.py"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index with one wheel: torch 9.9.9+cpu, empty inside."""
    folder = tmp_path / "simple" / "torch"
    folder.mkdir(parents=True)
    wheel = folder / "torch-9.9.9+cpu-py3-none-any.whl"
    info = "torch-9.9.9+cpu.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9+cpu\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    link = f'<a href="{wheel.name.replace("+", "%2B")}#sha256={digest}">{wheel.name}</a>'
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


def asked(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True)


def test_an_index_that_answers_is_used_and_named(index: str) -> None:
    answer = asked(index)
    assert answer.stdout.strip() == index
    assert index in answer.stderr and len(answer.stderr.splitlines()) == 1


def test_pip_takes_the_cpu_build_from_it(index: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    subprocess.run(
        [*pip, "--index-url", asked(index).stdout.strip(), "-d", tmp_path / "got", "torch==9.9.9"],
        check=True,
        env=own | {"PIP_CONFIG_FILE": os.devnull},
    )
    assert [p.name for p in (tmp_path / "got").iterdir()] == ["torch-9.9.9+cpu-py3-none-any.whl"]


def test_an_index_of_the_users_that_is_silent_ends_the_installation() -> None:
    answer = asked("http://127.0.0.1:9/simple")
    assert answer.returncode == 1 and not answer.stdout and "does not answer" in answer.stderr


def test_none_leaves_pip_alone() -> None:
    answer = asked("none")
    assert answer.returncode == 0 and not answer.stdout.strip()


def test_pytorchs_own_index_is_asked_for_on_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    script: dict[str, object] = {"__name__": "torch_index"}
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), script)
    script["CPU_BUILDS"] = "http://127.0.0.1:9/simple"
    cpu_index = script["cpu_index"]
    assert cpu_index("", "darwin") == ("", "torch comes from pip's own index")  # type: ignore[operator]
    address, reason = cpu_index("", "linux")  # type: ignore[operator]
    assert address == "" and "127.0.0.1:9" in reason and "pip's own index" in reason
