"""Another machine over the system's own ssh: its keys, its ``~/.ssh/config``, its questions."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stategate.contract.errors import InstallError
from stategate.contract.staging import scratch_folder

_NO_LINE = 255  # what ssh exits with where it has no line, or lost it
_LAST = 12  # lines of what the other machine says that an error repeats
_GOES_ON = "give the same command again: it goes on from what is there; what ran there goes on"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command on the other machine came to."""

    code: int
    out: str
    errors: str  # what it wrote on stderr


class Host:
    """Commands and folders on another machine, over one connection; see `connected`."""

    def __init__(self, name: str, ssh: Sequence[str]) -> None:
        self.name, self._ssh = name, tuple(ssh)

    def ask(self, *words: str | Path, doing: str, script: str | None = None) -> Answer:
        """Run a command there, whatever it exits with; ``script`` is its standard input.

        Raises:
            InstallError: There is no line, or it dropped.
        """
        with tempfile.TemporaryFile() as errors:  # a pipe would wait for ssh's own helper
            done = subprocess.run(
                [*self._ssh, self.name, shlex.join(map(str, words))],
                input=(script or "").encode(),
                stdout=subprocess.PIPE,
                stderr=errors,
                check=False,
            )
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        return self._answer(done.returncode, done.stdout, text, doing)

    def do(self, *words: str | Path, doing: str, remedy: str | None = None) -> str:
        """Run a command there, and return what it prints.

        Raises:
            InstallError: It failed, or the line dropped.
        """
        answer = self.ask(*words, doing=doing)
        self.check(answer, doing, remedy)
        return answer.out

    def check(self, answer: Answer, doing: str, remedy: str | None = None) -> None:
        """Refuse an answer that is a failure."""
        if answer.code:
            raise InstallError(f"{self.name} failed at {doing}", found=_last(answer), remedy=remedy)

    def send(self, folder: Path, to: str) -> None:
        """Copy the files of a folder there; rsync, where both have it, sends what is missing."""
        doing = f"copying {folder.name}"
        self.do("mkdir", "-p", to, doing=doing)
        both = shutil.which("rsync") and not self.ask("rsync", "--version", doing=doing).code
        with tempfile.TemporaryFile() as errors:
            if both:
                place = f"{self.name}:{shlex.quote(to)}/"
                shell = shlex.join(self._ssh)
                sent = subprocess.run(
                    ["rsync", "-rt", "--partial", "-e", shell, f"{folder}/", place],
                    stderr=errors,
                    check=False,
                ).returncode
                sent = _NO_LINE if sent in (12, 30, 35) else sent
            else:
                sent = self._stream(folder, to, errors.fileno())
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            self.check(self._answer(sent, b"", text, doing), doing)

    def _stream(self, folder: Path, to: str, errors: int) -> int:
        command = [*self._ssh, self.name, shlex.join(["tar", "-xf", "-", "-C", to])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as receiver:
            assert receiver.stdin is not None
            try:
                with tarfile.open(fileobj=receiver.stdin, mode="w|") as archive:
                    archive.add(folder, ".")
                receiver.stdin.close()
            except BrokenPipeError:
                receiver.kill()
                return _NO_LINE
            return receiver.wait()

    def _answer(self, code: int, out: bytes, errors: str, doing: str) -> Answer:
        answer = Answer(code, out.decode(errors="replace"), errors)
        if code < 0 or code == _NO_LINE:
            raise InstallError(
                f"there is no line to {self.name}, or it dropped, at {doing}",
                found=_last(answer),
                expected=f"that `{shlex.join([*self._ssh[:1], self.name])} true` works",
                remedy=_GOES_ON,
            )
        return answer


def _last(answer: Answer) -> str:
    lines = (answer.errors.strip() or answer.out.strip()).splitlines()
    return "\n".join(lines[-_LAST:]) or f"exit code {answer.code}, and no word"


@contextmanager
def connected(name: str, ssh: str = "ssh") -> Iterator[Host]:
    """A machine by the name that ssh has for it.

    Args:
        name: Such as ``pi@robot-7.local``, or a name of ``~/.ssh/config``.
        ssh: The program and its options, as one would type them: ``ssh -p 2222``.

    Raises:
        InstallError: The name would be an option, or there is no ssh on this machine.
    """
    words = shlex.split(ssh)
    if not name or name.startswith("-") or not words:
        raise InstallError(
            "the host has no name", found=name or ssh, expected="such as pi@robot-7.local"
        )
    if shutil.which(words[0]) is None:
        raise InstallError(
            f"there is no {words[0]} on this machine",
            expected="OpenSSH's client",
            remedy="apt-get install openssh-client",
        )
    with scratch_folder() as scratch:
        if Path(words[0]).name == "ssh":  # one question for a password, and a line that is watched
            shared = ("ControlMaster=auto", f"ControlPath={scratch}/%C", "ControlPersist=60")
            alive = ("ConnectTimeout=20", "ServerAliveInterval=5", "ServerAliveCountMax=6")
            words += [part for one in (*shared, *alive) for part in ("-o", one)]
        try:
            yield Host(name, words)
        finally:
            if Path(words[0]).name == "ssh":
                subprocess.run([*words, "-O", "exit", name], capture_output=True, check=False)
