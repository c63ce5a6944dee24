"""A page that is alive: one local server, read-only, that reaches for nothing on the network.

Paths: ``/`` the page, ``/about`` and ``/moment?step=N`` JSON, ``/events`` server-sent events, each
with the rows of new steps and how the session stands.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from stategate.contract.errors import SpecError
from stategate.runtime.base.closeable import Closeable
from stategate.runtime.watch.page import live_page, script_hash
from stategate.runtime.watch.tap import MOST_ROWS, Row, thinned

LOOPBACK = "127.0.0.1"
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_TURN_S = 0.1  # between two events; what a page draws more often nobody sees
_ROWS = 512  # of one event
_MOST_CLIENTS = 16
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Source(Protocol):
    """What is watched."""

    def about(self) -> dict[str, Any]:
        """What does not change."""
        ...

    def status(self) -> dict[str, Any]:
        """How it stands now."""
        ...

    def since(self, count: int) -> tuple[list[Row], int]:
        """Rows after the first ``count``, and how many there were so far."""
        ...

    def moment(self, step: int) -> dict[str, Any] | None:
        """One step in detail; None where nothing is kept of it."""
        ...

    def look(self, viewers: int) -> None:
        """So many more, or fewer, look at it."""
        ...


class Server(Closeable):
    """Serves one source until it is closed.

    Attributes:
        url: Where the page is, token included.
        source: What is shown.
    """

    def __init__(self, source: Source, bind: str = LOOPBACK, port: int = 0) -> None:
        """Listen, and serve on threads that end with the process."""
        self.source, self._is_open = source, True
        self._token = "" if is_loopback(bind) else secrets.token_urlsafe(24)
        try:
            family = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0][0]
            http = type("_Listener", (_Listener,), {"address_family": family})
            self._http = http((bind, port), _handler(self))
        except (OSError, OverflowError) as problem:
            raise SpecError(
                "nothing can be served there",
                found=f"{bind} port {port}: {problem}",
                expected="an address of this machine and a port that is free",
                remedy="--bind 127.0.0.1 --port 0",
            ) from problem
        self.port = int(self._http.server_address[1])
        host = f"[{bind}]" if ":" in bind else bind
        self.url = f"http://{host}:{self.port}/" + (f"?token={self._token}" if self._token else "")
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def refusal(self, host: str, token: str) -> str:
        """Why a request is not answered; empty where it is."""
        if self._token:
            if hmac.compare_digest(token.encode(), self._token.encode()):
                return ""
            return "this page needs the token of the address that was printed"
        # A page of somebody else's whose name leads to this machine is no page of this machine.
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return "" if name in _LOCAL_NAMES else "ask for it by the name localhost"

    def events(self) -> Iterator[str]:
        """New rows and the status, again and again."""
        pause, count, is_first = threading.Event(), 0, True
        self.source.look(1)
        try:
            while self._is_open:
                rows, now = self.source.since(count)
                if is_first or now != count or rows:
                    most = MOST_ROWS if is_first else _ROWS
                    data = {"rows": thinned(rows, most), "count": now}
                    yield encoded(data | {"status": self.source.status()})
                else:
                    yield ""
                count, is_first = now, False
                pause.wait(_TURN_S)
        finally:
            self.source.look(-1)

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seats = threading.BoundedSemaphore(_MOST_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._seats.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._seats.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that goes away is no news for whoever steps."""


def is_loopback(bind: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return bind == "localhost" or ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def encoded(data: object) -> str:
    """JSON that may stand in a page: nothing in it ends a script."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


@lru_cache(maxsize=1)
def _policy() -> str:
    rest = "style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src '{script_hash()}'; {rest}"


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0
        server_version, sys_version = "stategate", ""

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            why = server.refusal(self.headers.get("Host", ""), query.get("token", [""])[0])
            if why:
                self._answer(403, why)
            elif url.path == "/":
                self._answer(200, live_page(), "text/html")
            elif url.path == "/about":
                self._answer(200, encoded(server.source.about()), "application/json")
            elif url.path == "/moment":
                step = query.get("step", [""])[0]
                is_step = step.isascii() and step.isdecimal() and len(step) < 19
                record = server.source.moment(int(step)) if is_step else None
                self._answer(200, encoded(record), "application/json")
            elif url.path == "/events":
                self._stream()
            else:
                self._answer(404, "there is no such page")

        def _answer(self, code: int, text: str, kind: str = "text/plain") -> None:
            body = text.encode()
            self._head(code, kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _head(self, code: int, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Security-Policy", _policy())
            for name, value in _HEADERS.items():
                self.send_header(name, value)

        def _stream(self) -> None:
            self._head(200, "text/event-stream")
            self.end_headers()
            events = server.events()
            with suppress(OSError):
                for event in events:
                    self.wfile.write(f"data: {event}\n\n".encode() if event else b":\n\n")
                    self.wfile.flush()
            events.close()  # type: ignore[attr-defined]

    return Handler
