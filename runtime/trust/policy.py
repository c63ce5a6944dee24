"""What a machine accepts: one key, one certificate, or a policy file that names them."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec

from stategate.contract.errors import MissingDependencyError, TrustError
from stategate.contract.failures import failures
from stategate.contract.manifest import Manifest
from stategate.contract.reading import read_bounded
from stategate.contract.specs import Record

Trust = str | Path
_FILE_BYTES = 1 << 20
_KEY = b"-----BEGIN PUBLIC KEY-----"
_FORM = "a public key or a certificate in PEM, or a policy: docs/guides/trust.md"


class Identity(Record, frozen=True, forbid_unknown_fields=True):
    """Who signed with sigstore: an address or a workflow, and who vouches for it."""

    identity: str
    issuer: str


class Policy(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine accepts; a key that this version does not know is an error.

    Attributes:
        version: Of this form.
        keys: Files with public keys, relative to the policy.
        certificates: Files with certificates of those who vouch for signers.
        identities: Who may sign with sigstore.
        sigstore: A trust configuration of sigstore in a file, for a machine without a network.
        native: Whether native code of an accepted bundle may run.
        engines: What may step it; anything where it is empty.
        models: Names of models; any where it is empty.
        not_older: A bundle that was made before is refused.
    """

    version: Literal[1]
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()
    sigstore: str | None = None
    native: bool = True
    engines: tuple[Literal["onnxruntime", "native", "tensorrt"], ...] = ()
    models: tuple[str, ...] = ()
    not_older: datetime | None = None

    def breaches(self, manifest: Manifest) -> str | None:
        """What of a bundle is against the policy; None where nothing is."""
        if self.models and manifest.model.name not in self.models:
            return f"the model is {manifest.model.name}, not {' or '.join(self.models)}"
        in_onnxruntime = [g.role for g in manifest.graphs if g.role in ("chunk", "prologue")]
        if self.engines and "onnxruntime" not in self.engines and in_onnxruntime:
            return f"its graph {in_onnxruntime[0]} runs in onnxruntime"
        if self.not_older is None:
            return None
        limit = self.not_older
        limit = limit if limit.tzinfo else limit.replace(tzinfo=timezone.utc)
        try:
            created = datetime.fromisoformat(manifest.created.replace("Z", "+00:00"))
            old = created < limit
        except (ValueError, TypeError):
            return f"it does not say when it was made: {manifest.created!r}"
        return f"it was made at {manifest.created}, before {limit.isoformat()}" if old else None


def read_policy(trust: Trust) -> tuple[Policy, Path]:
    """A policy, and the folder that its paths start from; a key or certificate is one by itself.

    Raises:
        TrustError: The file is missing or is neither.
    """
    path = Path(trust)
    try:
        raw = read_bounded(path, _FILE_BYTES)
    except failures(OSError) as problem:
        raise TrustError("what to trust cannot be read", found=problem, expected=_FORM) from problem
    if b"PRIVATE KEY-----" in raw:
        raise TrustError(
            "this is a private key: it signs, and nobody but its owner may have it",
            found=path,
            expected="the public key that belongs to it",
            remedy=f"openssl pkey -in {shlex.quote(str(path))} -pubout -out author.pub",
        )
    if _KEY in raw:
        _refuse_several(path, raw)
        return Policy(version=1, keys=(path.name,)), path.parent
    if b"-----BEGIN CERTIFICATE-----" in raw:
        return Policy(version=1, certificates=(path.name,)), path.parent
    try:
        policy = msgspec.convert(toml(raw), Policy)
    except (msgspec.MsgspecError, ValueError) as problem:  # TOML and UTF-8 raise the latter
        raise TrustError("this is not what can be trusted", found=f"{path}: {problem}",
                         expected=_FORM) from problem  # fmt: skip
    if not (policy.keys or policy.certificates or policy.identities):
        raise TrustError(
            "the policy names nobody whose signature is accepted",
            found=path,
            expected="keys, certificates or identities",
            remedy='keys = ["author.pub"]',
        )
    if policy.engines and not policy.native and "onnxruntime" not in policy.engines:
        raise TrustError(
            "the policy leaves no engine to step a bundle with",
            found=f"native = false, and engines = {list(policy.engines)}",
            expected="onnxruntime among its engines, or native = true",
        )
    named = (*policy.keys, *policy.certificates, *filter(None, [policy.sigstore]))
    if missing := [name for name in named if not (path.parent / name).is_file()]:
        raise TrustError(
            "the policy names files that are not there",
            found=", ".join(missing),
            expected=f"files in {path.parent.absolute()}, or absolute paths",
            remedy="copy them there, or take them out of the policy",
        )
    for name in policy.keys:
        key = path.parent / name
        with suppress(OSError):  # one that cannot be read hides no other
            _refuse_several(key, read_bounded(key, _FILE_BYTES))
    return policy, path.parent


def _refuse_several(path: Path, raw: bytes) -> None:
    """Refuse a file of several keys, of which libraries read the first alone."""
    if (count := raw.count(_KEY)) > 1:
        raise TrustError(
            "a file holds several keys, and only the first would be looked at",
            found=f"{count} public keys in {path}",
            expected="one key in a file",
            remedy='a policy that names their files: keys = ["one.pub", "another.pub"]',
        )


def toml(raw: bytes, extra: str = "trust") -> dict[str, Any]:
    """Tables of a file in TOML; ``extra`` brings what Python 3.10 lacks."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as missing:
            raise MissingDependencyError("tomli", extra) from missing
    return tomllib.loads(raw.decode())
