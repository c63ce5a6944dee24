"""A service is ready, alive and stopped in systemd's own words, and goes on with its memory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import stategate
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.watch.systemd import Systemd

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens in place of systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        yield listener


def test_a_step_says_alive_twice_in_the_time_allowed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    clock = ManualClock()
    systemd = Systemd(clock)
    assert systemd.say("READY=1")
    for _ in range(400):  # four seconds at 100 Hz
        systemd.alive()
        clock.sleep_until_ns(clock.now_ns() + 10_000_000)
    assert [manager.recv(100) for _ in range(5)] == [b"READY=1", *[b"WATCHDOG=1"] * 4]
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}],
)
def test_a_program_that_systemd_did_not_start_says_nothing(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    systemd = Systemd()
    systemd.alive()
    assert not systemd.say("READY=1")


def _started(folder: Path, manager: socket.socket) -> subprocess.Popen[str]:
    environment = os.environ | {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "400000",
        "STATE_DIRECTORY": str(folder),
    }
    program = [sys.executable, str(EXAMPLES / "robot_service.py")]
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_service_is_ready_alive_hung_stopped_and_goes_on(
    tiny_bundle: Path, tmp_path: Path, manager: socket.socket
) -> None:
    folder = tmp_path / "robot"
    stategate.install(tiny_bundle, folder)
    first = _started(folder, manager)
    assert manager.recv(200) == b"READY=1\nSTATUS=goes on at step 0"
    assert [manager.recv(200) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    first.send_signal(signal.SIGSTOP)  # a step that hangs
    time.sleep(0.3)
    manager.settimeout(1)
    with pytest.raises(TimeoutError):
        while True:
            assert manager.recv(200) == b"WATCHDOG=1"
    manager.settimeout(20)
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=20)
    assert first.returncode == 0
    steps = int(printed.rsplit("saved at step ", 1)[1])
    assert steps > 0
    while manager.recv(200) != b"STOPPING=1":
        pass
    second = _started(folder, manager)
    assert manager.recv(200) == f"READY=1\nSTATUS=goes on at step {steps}".encode()
    second.kill()
    second.communicate()


@pytest.mark.slow
def test_systemd_itself_takes_the_unit(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("no systemd-analyze here: it comes with Debian's systemd")
    text = (EXAMPLES / "robot.service").read_text()
    unit = tmp_path / "robot.service"
    interpreter = "/home/robot/.local/share/stategate/bin/python"
    assert f"ExecStart={interpreter} /home/robot/robot_service.py\n" in text
    unit.write_text(text.replace(interpreter, sys.executable))
    done = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("WatchdogSec=2", "WatchdogSecond=2"))
    done = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True)
    assert "WatchdogSecond" in done.stderr  # it would have said so
