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
from typing import IO

from stategate.contract.errors import InstallError
from stategate.contract.reading import file_sha256
from stategate.contract.staging import scratch_folder

_NO_LINE = 255  # what ssh exits with where it has no line, or lost it
# A socket's name has 107 bytes, of which ssh takes 58 for a digest and its own temporary name.
_LONGEST = 49
_MARK = "--- stategate ---"
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

    def ask(self, *words: str | Path, doing: str, script: str | bytes | IO[bytes] = b"") -> Answer:
        """Run a command there, whatever it exits with; ``script`` is its standard input."""
        # A login shell may print a banner first: what the command prints comes after the mark.
        marked = ("sh", "-c", f'echo {_MARK}; exec "$0" "$@"', *map(str, words))
        # A pipe for what it says would wait for ssh's own helper.
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as typed:
            if isinstance(script, str | bytes):
                typed.write(script if isinstance(script, bytes) else script.encode())
                typed.seek(0)
                script = typed
            done = subprocess.run(
                [*self._ssh, self.name, shlex.join(marked)],
                stdin=script,
                stdout=subprocess.PIPE,
                stderr=errors,
                check=False,
            )
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        banner, mark, out = done.stdout.decode(errors="replace").partition(f"{_MARK}\n")
        answer = Answer(done.returncode, out if mark else banner, text)
        if answer.code < 0 or answer.code == _NO_LINE:
            raise InstallError(
                f"there is no line to {self.name}, or it dropped, at {doing}",
                found=_last(answer),
                expected=f"that `{shlex.join([*self._ssh[:1], self.name])} true` works",
                remedy=_GOES_ON,
            )
        if not mark:
            raise InstallError(
                f"{self.name} gives no answer that a shell would give",
                found=_last(answer),
                expected="a Linux machine with sh",
            )
        return answer

    def do(self, *words: str | Path, doing: str, remedy: str | None = None) -> str:
        """Run a command there, and return what it prints."""
        answer = self.ask(*words, doing=doing)
        self.check(answer, doing, remedy)
        return answer.out

    def check(self, answer: Answer, doing: str, remedy: str | None = None) -> None:
        """Refuse an answer that is a failure."""
        if answer.code:
            raise InstallError(f"{self.name} failed at {doing}", found=_last(answer), remedy=remedy)

    def send(self, folder: Path, to: str) -> None:
        """Copy the files of a folder there, except what is there already, byte for byte."""
        doing = f"copying {folder.name}"
        look = 'mkdir -p "$1" && cd "$1" && find . -type f -exec sha256sum {} +'
        present = set(self.do("sh", "-c", look, "sh", to, doing=doing).splitlines())
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        missing = {n: p for n, p in files.items() if f"{file_sha256(p)[0]}  ./{n}" not in present}
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
                for name, path in missing.items():
                    archive.add(path, name)
            packed.seek(0)
            # As root, tar would give the files to whoever owns them here.
            answer = self.ask("tar", "-xof", "-", "-C", to, doing=doing, script=packed)
        self.check(answer, doing)


def _last(answer: Answer) -> str:
    lines = (answer.errors.strip() or answer.out.strip()).splitlines()
    return "\n".join(lines[-_LAST:]) or f"exit code {answer.code}, and no word"


@contextmanager
def connected(name: str, ssh: str = "ssh") -> Iterator[Host]:
    """A machine by the name that ssh has for it.

    Args:
        name: Such as ``pi@robot-7.local``, or a name of ``~/.ssh/config``.
        ssh: The program and its options, as one would type them: ``ssh -p 2222``.
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
        is_openssh = Path(words[0]).name == "ssh"
        if is_openssh:  # one question for a password, and a line that is watched
            alive = ("ConnectTimeout=20", "ServerAliveInterval=5", "ServerAliveCountMax=6")
            shared = ("ControlMaster=auto", f"ControlPath={scratch}/%C", "ControlPersist=60")
            both = alive if len(str(scratch)) > _LONGEST else (*alive, *shared)
            words += [part for one in both for part in ("-o", one)]
        try:
            yield Host(name, words)
        finally:
            if is_openssh:
                subprocess.run([*words, "-O", "exit", name], capture_output=True, check=False)
