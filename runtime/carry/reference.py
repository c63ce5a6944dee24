"""Names of bundles in a registry: ``oci://host:port/name:tag``, or ``@sha256:...``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from stategate.contract.errors import RegistryError

SCHEME = "oci://"
# The grammar of the OCI distribution specification.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:\[[0-9a-f:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?"
_FORM = re.compile(
    rf"{SCHEME}(?P<host>{_HOST})/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where something is in a registry."""

    host: str  # with its port
    name: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read one.

        Raises:
            RegistryError: It is none.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise RegistryError(
                "this is no name of a bundle in a registry",
                found=text,
                expected=f"{SCHEME}HOST[:PORT]/NAME[:TAG][@sha256:...], the name in lower case",
                remedy=f"such as {SCHEME}localhost:5000/policies/walk:1.2",
            )
        return cls(match["host"], match["name"], match["tag"], match["digest"])

    @property
    def object(self) -> str:
        """What a manifest is asked for by: the digest, which nobody can move, or the tag."""
        return self.digest or self.tag or "latest"

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine."""
        return is_loopback(re.sub(r":[0-9]+$", "", self.host).strip("[]"))

    def at(self, digest: str) -> str:
        """The name of exactly these bytes."""
        return f"{SCHEME}{self.host}/{self.name}@{digest}"


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
