"""Another process, on this machine or a robot, as a page or a terminal here sees it."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from stategate.contract.errors import EpisodeError
from stategate.contract.reading import printable
from stategate.runtime.watch.tap import Row

_ANSWER_BYTES = 1 << 24
_TIMEOUT_S = 10.0
_ROWS = 40_000


class _News(msgspec.Struct):
    rows: list[list[float | int | None]]
    status: dict[str, Any]


class RemoteSource:
    """Reads what ``session.watch`` or ``stategate watch`` serves elsewhere."""

    def __init__(self, host: str) -> None:
        """Ask it what it steps, and go on listening.

        Args:
            host: Address as it was printed there, or ``host:port``.
        """
        url = urlsplit(host if "://" in host else f"http://{host}")
        self._base = f"{url.scheme}://{url.netloc}"
        self._query, self._host = url.query, url.hostname or host
        if url.scheme not in ("http", "https"):
            raise EpisodeError("a page is served by http", found=printable(host))
        self._rows: deque[Row] = deque(maxlen=_ROWS)
        self._count, self._problem = 0, ""
        self._status: dict[str, Any] = {"ledger": {}, "gauges": []}
        self._about = self._answer("about")
        if self._about is None or "model" not in self._about:
            raise EpisodeError("nothing that can be watched is there", found=printable(host))
        self._has_news = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        self._has_news.wait(_TIMEOUT_S)

    def _open(self, path: str) -> Any:
        query = "&".join(part for part in (path.partition("?")[2], self._query) if part)
        request = Request(f"{self._base}/{path.partition('?')[0]}?{query}")
        return urlopen(request, timeout=_TIMEOUT_S)

    def _answer(self, path: str) -> Any:
        try:
            with self._open(path) as answer:
                return msgspec.json.decode(answer.read(_ANSWER_BYTES))
        except HTTPError as problem:
            if problem.code == 404:
                return None
            words = printable(problem.read(500).decode(errors="replace"))
            raise self._silent(f"{problem.code}: {words}") from problem
        except (OSError, HTTPException, ValueError) as problem:
            raise self._silent(str(problem)) from problem

    def _silent(self, reason: str) -> EpisodeError:
        return EpisodeError(
            "nothing that can be watched answers there",
            found=f"{self._base}: {printable(reason)}",
            expected="the address that session.watch(port).url or stategate watch has printed, "
            "token included",
        )

    def _listen(self) -> None:
        """Read events for as long as the process lives; a lost connection is tried again."""
        while True:
            with suppress(OSError, HTTPException, ValueError), self._open("events") as stream:
                self._rows.clear()
                while line := stream.readline(_ANSWER_BYTES):
                    if line.startswith(b"data: "):
                        news = msgspec.json.decode(line[6:], type=_News)
                        self._rows.extend(news.rows)
                        self._count += len(news.rows)
                        self._status, self._problem = news.status, ""
                    self._has_news.set()
            self._problem = f"{self._host} does not answer; it is asked again."
            threading.Event().wait(1.0)

    def about(self) -> dict[str, Any]:
        """See `Source`."""
        return {**self._about, "note": f"on {self._host}"}

    def status(self) -> dict[str, Any]:
        """See `Source`."""
        return self._status | ({"problem": self._problem} if self._problem else {})

    def since(self, count: int) -> tuple[list[Row], int]:
        """See `Source`."""
        rows, now = list(self._rows), self._count
        return rows[len(rows) - min(len(rows), max(0, now - count)) :], now

    def moment(self, step: int) -> dict[str, Any] | None:
        """See `Source`."""
        record: dict[str, Any] | None = None
        with suppress(EpisodeError):
            record = self._answer(f"moment?step={step}")
        return record

    def look(self, viewers: int) -> None:
        """See `Source`."""
