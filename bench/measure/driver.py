"""The other end of `stategate.bench.measure.worker`: starts it, asks it, notices when it dies."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

from stategate.contract.errors import MeasurementError
from stategate.runtime.base.closeable import Closeable

OPEN_SESSION = "stategate.bench.measure.subject:Subject"


class Driver(Closeable):
    """One worker process; use it in a ``with``.

    Attributes:
        hello: What the worker said after its first step, and ``first_answer_s``: wall time from
            the start of the process until then.
    """

    def __init__(
        self,
        bundle: str,
        *,
        episode: str | None = None,
        maker: str = OPEN_SESSION,
        more: dict[str, Any] | None = None,
        core: int | None = None,
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        silence_s: float | None = None,
    ) -> None:
        """Start the process and wait for its first step."""
        spec: dict[str, Any] = {"bundle": bundle, "episode": episode, "maker": maker, "core": core}
        spec["more"] = more or {}
        # Stepping the bundle tells more only where it is our runtime that stepped it.
        self._remedy = (
            "step the bundle with: stategate verify BUNDLE" if maker == OPEN_SESSION else None
        )
        self._silence_s = silence_s
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed with the driver
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", "stategate.bench.measure.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, **(env or {})},
        )
        self.hello: dict[str, Any] = {}
        try:
            self.hello, _ = self.ask("hello")
        except MeasurementError:
            self.close()
            raise
        self.hello["first_answer_s"] = time.perf_counter() - started

    def ask(self, do: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        """Have a job done.

        Returns:
            Its answer, and the bytes of its samples.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
            # Nothing of an earlier answer is left over, so that the pipe alone tells of a new one.
            if not select.select([stdout], [], [], self._silence_s)[0]:
                self._process.kill()
                raise MeasurementError(
                    f"the process that stepped it was silent for {self._silence_s} s",
                    found=f"no answer to {do!r}: {self._last_words()}",
                    remedy=self._remedy,
                )
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise MeasurementError(
                f"the process that stepped it ended during {do!r}",
                found=f"exit code {self._process.wait()}: {self._last_words()}",
                remedy=self._remedy,
            )
        header: dict[str, Any] = json.loads(line)
        return header, stdout.read(header.pop("nbytes"))

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").splitlines()
        # The exception's own line; its advice is indented below it.
        messages = [line for line in lines if line and line[0] != " "]
        return messages[-1] if messages else "it said nothing"

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # a request that a dead process never read
                self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()
