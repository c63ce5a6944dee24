"""A registry in a thread, which answers as honestly as a test wants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

IMAGE = "application/vnd.oci.image.manifest.v1+json"


class Shelf:
    """What a registry holds, what it was asked, and how it lies."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.answer: Callable[[str, bytes], bytes] = lambda digest, raw: raw
        self.password: str | None = None  # as Basic authentication has it
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def document(self, tag: str = "1") -> dict[str, Any]:
        """The artifact under a tag, to be altered and put back by `put`."""
        return json.loads(self.manifests[tag])

    def put(self, document: dict[str, Any], tag: str = "1") -> None:
        self.manifests[tag] = json.dumps(document).encode()

    def loaded(self) -> list[tuple[str, str]]:
        """Digest and range of every blob that was asked for."""
        return [
            (p.rpartition("/")[2], r) for m, p, r in self.requests if m == "GET" and "/blobs/" in p
        ]


@contextmanager
def serving(shelf: Shelf) -> Iterator[Shelf]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def reply(self, status: int, body: bytes = b"", promised: int = -1, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body) if promised < 0 else promised))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if promised > len(body):
                self.close_connection = True

        def take(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def serve(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.take()
            shelf.requests.append((self.command, path, self.headers.get("Range", "")))
            login = self.headers.get("Authorization")
            if shelf.password is not None and login != f"Basic {shelf.password}":
                self.reply(401, WWW_Authenticate='Basic realm="a registry"')
            elif path == "/v2/":
                self.reply(200)
            elif self.command == "POST":
                self.reply(202, Location="/v2/upload/1")
            elif self.command == "PUT" and "/manifests/" in path:
                shelf.manifests[path.rpartition("/")[2]] = body
                shelf.manifests[f"sha256:{hashlib.sha256(body).hexdigest()}"] = body
                self.reply(201)
            elif self.command == "PUT":
                shelf.blobs[query.partition("digest=")[2].replace("%3A", ":")] = body
                self.reply(201)
            else:
                self.look_up(path.rpartition("/")[2], "/manifests/" in path)

        def look_up(self, name: str, is_manifest: bool) -> None:
            raw = (shelf.manifests if is_manifest else shelf.blobs).get(name)
            if raw is None:
                self.reply(404)
            elif is_manifest:
                self.reply(200, raw, Content_Type=IMAGE)
            else:
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                body = shelf.answer(name, raw)[start:]
                promised = max(len(raw) - start, len(body))
                self.reply(206 if start else 200, body, promised)

        do_GET = do_HEAD = do_PUT = do_POST = serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shelf.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield shelf
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
