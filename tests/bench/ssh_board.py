"""A machine to deploy to: an sshd of this user on loopback, with keys, port and home of its own.

As root the sshd is an ordinary user's, whom nss_wrapper adds to what the process sees of
/etc/passwd; nothing of this machine changes. ``make ssh-tools`` installs what it needs.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd") or next(
    (path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(path).exists()), None
)
_UID = 12_345


@dataclass
class Board:
    """A machine that ssh reaches."""

    host: str
    ssh: str  # a program that is called so, and reaches any name of a host here
    home: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command there."""
        command = [self.ssh, self.host, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def dropping(self, call: int, after_s: float, what: str) -> str:
        """An ssh that fails in the call of that number, after so many seconds.

        Args:
            call: From 0 on.
            after_s: Seconds.
            what: ``line`` ends ssh here; ``board`` the command there, as a loss of power would.
        """
        name = f"{what}-{call}-{after_s}"
        count, script = self.home.parent / f"calls-{name}", self.home.parent / f"ssh-{name}"
        kill = f"timeout -s KILL {after_s}"
        local, remote = (f"{kill} ", "") if what == "line" else ("", f"{kill} ")
        script.write_text(
            f"#!/bin/sh\nn=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}\n"
            f'if [ "$n" != {call} ]; then exec {self.ssh} "$@"; fi\n'
            f'host=$1; shift; exec {local}{self.ssh} "$host" {remote}"$@"\n'
        )
        script.chmod(0o755)
        return str(script)


def _python_for_others() -> str | None:
    """An interpreter of this version that every user may run."""
    for name in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        path = Path(name)
        if not path.exists() or not all(p.stat().st_mode & stat.S_IXOTH for p in path.parents):
            continue
        words = [name, "-c", "import sys; print(*sys.version_info[:2])"]
        printed = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
        if printed == [str(part) for part in sys.version_info[:2]]:
            return name
    return None


@contextmanager
def board() -> Iterator[Board]:
    """Start it, and end it."""
    wrapper = next(iter(sorted(Path("/usr/lib").glob("*/libnss_wrapper.so"))), None)
    python = _python_for_others()
    ordinary = os.getuid() == 0 and wrapper is not None and python is not None
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no ssh and sshd here: make ssh-tools installs them")
    with tempfile.TemporaryDirectory(prefix="stategate-board-") as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        home = place / "home"
        home.mkdir()
        for name in ("user", "host"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
            subprocess.run(key, check=True)
        shutil.copy(place / "user.pub", place / "authorized")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (place / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nPidFile {place}/pid\n"
            f"AuthorizedKeysFile {place}/authorized\nUsePAM no\nStrictModes no\n"
            f"PasswordAuthentication no\nSetEnv HOME={home} OMP_NUM_THREADS=1 "
            f"PATH={home}/bin:/usr/local/bin:/usr/bin:/bin\n"
        )
        # What a device has of Python: the rooms of this checkout and the packages of this one.
        paths = [str(ROOT / ".view"), *(path for path in sys.path if path.endswith("-packages"))]
        command = home / ".local" / "bin" / "stategate"
        command.parent.mkdir(parents=True)
        command.write_text(
            f"#!/bin/sh\nPYTHONPATH={':'.join(paths)} exec {python or sys.executable} -P -c "
            "'from stategate.cli.main import main; main()' \"$@\"\n"
        )
        command.chmod(0o755)
        environment, start = dict(os.environ), []
        user = pwd.getpwuid(os.getuid()).pw_name
        if ordinary:
            user = "robot"
            (place / "passwd").write_text(f"robot:x:{_UID}:{_UID}:robot:{home}:/bin/sh\n")
            (place / "group").write_text(f"robot:x:{_UID}:\n")
            environment |= {
                "LD_PRELOAD": str(wrapper),
                "NSS_WRAPPER_PASSWD": str(place / "passwd"),
                "NSS_WRAPPER_GROUP": str(place / "group"),
            }
            for path in (home, *home.rglob("*"), place / "host"):
                os.chown(path, _UID, _UID)
            start = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]
        (place / "client").write_text(
            f"Host *\nHostName 127.0.0.1\nPort {port}\nUser {user}\nIdentityFile {place}/user\n"
            f"UserKnownHostsFile {place}/known\nStrictHostKeyChecking no\nBatchMode yes\n"
            "LogLevel ERROR\n"
        )
        ssh = place / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {place}/client "$@"\n')
        ssh.chmod(0o755)
        machine = Board(f"{user}@robot-7", str(ssh), home)
        log = (place / "log").open("w")
        daemon = subprocess.Popen(
            [*start, SSHD, "-D", "-e", "-f", str(place / "config")], env=environment, stderr=log
        )
        try:
            for _ in range(100):
                if machine.run("true").returncode == 0:
                    break
                time.sleep(0.05)
            else:
                pytest.fail(f"sshd does not start: {(place / 'log').read_text()}")
            yield machine
        finally:
            daemon.terminate()
            daemon.wait(10)
            log.close()
