"""One repository of a registry, through the client library of ORAS."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stategate.contract.errors import DigestError, MissingDependencyError, RegistryError
from stategate.runtime.carry.artifact import IMAGE, MANIFEST_BYTES, check_digest
from stategate.runtime.carry.reference import Reference, is_loopback

try:
    import requests
    from oras.container import Container
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter
    from urllib3.exceptions import HTTPError
except ModuleNotFoundError as missing:
    raise MissingDependencyError("oras", "carry") from missing

_TIMEOUT_S = (10, 60)  # to connect, and of silence while reading
_CHUNK_BYTES = 1 << 20
_WHOLE_BYTES = 1 << 26  # of a file that is sent in one request, which is held in memory


class _Patient(HTTPAdapter):
    """Waits so long and no longer."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = kwargs.get("timeout") or _TIMEOUT_S
        return super().send(request, *args, **kwargs)


class _Unencrypted(_Patient):
    """Plain http, to this machine alone; also where a registry sends the client elsewhere."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_loopback(urlsplit(request.url).hostname or ""):
            raise RegistryError(
                "the registry is asked without encryption",
                found=request.url,
                expected="https, or a registry on this machine",
                remedy="--plain-http, in a network that you trust",
            )
        return super().send(request, *args, **kwargs)


class _Client(Registry):  # type: ignore[misc]
    """Asks once: the library would try five times, over two minutes."""

    do_request = Registry.do_request.__wrapped__


def container_of(reference: Reference) -> Container:
    """A reference as the library has it; its own parser asks docker.io for `localhost/a`."""
    container = Container("name")
    container.registry, container.repository = reference.host, reference.name
    return container


def client_of(reference: Reference, plain_http: bool, login: str = "token") -> _Client:
    """The library's client, with the passwords of docker login."""
    insecure = plain_http or reference.is_loopback
    client = _Client(reference.host, insecure=insecure, auth_backend=login)
    client.session.mount("https://", _Patient())
    client.session.mount("http://", _Patient() if plain_http else _Unencrypted())
    folder = os.environ.get("DOCKER_CONFIG")
    config = Path(folder, "config.json") if folder else None
    configs = [str(config)] if config and config.exists() else None
    client.auth.load_configs(container_of(reference), configs)
    return client


class Repository:
    """What a reference names, opened for reading and writing."""

    def __init__(self, reference: Reference, plain_http: bool) -> None:
        self._reference = reference
        self._container = container_of(reference)
        with self._asking():
            self._client = client_of(reference, plain_http)
            # The library's tokens do not answer a registry that wants name and password itself.
            answer = self._client.session.get(f"{self._client.prefix}://{reference.host}/v2/")
            scheme = answer.headers.get("Www-Authenticate", "")
            if answer.status_code == 401 and scheme.lower().startswith("basic"):
                self._client = client_of(reference, plain_http, "basic")
                if not hasattr(self._client.auth, "_basic_auth"):
                    self._check(answer)

    def manifest(self) -> bytes:
        """The manifest that the reference names; what another digest names is refused.

        Raises:
            RegistryError: There is none, or it is too long.
            DigestError: The registry gives other bytes than those that the digest names.
        """
        url = f"{self._client.prefix}://{self._container.manifest_url(self._reference.object)}"
        with self._asking():
            answer = self._client.do_request(url, headers={"Accept": IMAGE}, stream=True)
            self._check(answer)
            raw: bytes = answer.raw.read(MANIFEST_BYTES + 1, decode_content=True)
            answer.close()
        if len(raw) > MANIFEST_BYTES:
            raise RegistryError("the manifest is too long", expected=f"{MANIFEST_BYTES:,} bytes")
        if self._reference.digest is not None:
            check_digest("the manifest", self._reference.digest, hashlib.sha256(raw).hexdigest())
        return raw

    def chunks(self, digest: str, start: int, size: int) -> Iterator[tuple[int, bytes]]:
        """The bytes of a blob from ``start``, or from 0 where the registry cannot go on.

        Yields:
            Where each piece belongs, and the piece; no more than ``size`` bytes in all.
        """
        url = f"{self._client.prefix}://{self._container.get_blob_url(digest)}"
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        with self._asking():
            answer = self._client.do_request(url, headers=headers, stream=True)
            self._check(answer)
            place = start if answer.status_code == 206 else 0
            # What has arrived and no more, so that nothing is lost where the line breaks.
            while piece := answer.raw.read1(_CHUNK_BYTES):
                if place + len(piece) > size:
                    answer.close()
                    raise DigestError(
                        "the registry gives more bytes than it promised",
                        found=f"more than {size:,} of {digest}",
                        remedy="push the bundle again, or use another registry",
                    )
                yield place, piece
                place += len(piece)

    def send(self, digest: str, path: Path) -> None:
        """Upload a file, unless the registry has it.

        Raises:
            RegistryError: It does not take it.
        """
        size = path.stat().st_size
        with self._asking():
            self._check(
                self._client.upload_blob(
                    str(path),
                    self._container,
                    {"digest": digest, "size": size},
                    do_chunked=size > _WHOLE_BYTES,
                    chunk_size=_WHOLE_BYTES,
                )
            )

    def tag(self, raw: bytes) -> None:
        """Name a manifest whose blobs are there.

        Raises:
            RegistryError: The registry does not take it.
        """
        url = f"{self._client.prefix}://{self._container.manifest_url(self._reference.object)}"
        headers = {"Content-Type": IMAGE}
        with self._asking():
            self._check(self._client.do_request(url, "PUT", data=raw, headers=headers))

    def _check(self, answer: Any) -> None:
        if answer.status_code in (200, 201, 202, 206):
            return
        remedies = {
            401: f"docker login {self._reference.host}",
            403: f"docker login {self._reference.host}, as somebody who may do this",
            404: "look at the name and the tag; push the bundle first",
        }
        raise RegistryError(
            f"the registry answers {answer.status_code}",
            found=f"{answer.request.method if answer.request else ''} {answer.url}",
            remedy=remedies.get(answer.status_code, "try again later, or ask who runs it"),
        )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Whatever the libraries raise becomes a sentence."""
        try:
            yield
        except (requests.RequestException, HTTPError, ValueError, OSError) as problem:
            login = f"docker login {self._reference.host}"
            raise RegistryError(
                f"the registry {self._reference.host} cannot be used",
                found=" ".join(str(problem).split())[:500],
                remedy=login if "authent" in str(problem) else "try again: what is done stays done",
            ) from problem
