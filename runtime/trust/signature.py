"""Signatures of OpenSSF Model Signing (OMS) 1.0, checked against an opened bundle."""

from __future__ import annotations

import json
import shlex
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from stategate.contract import Bundle
from stategate.contract.bundle import MANIFEST, SEAL, SIGNATURE, seal_of, sha256
from stategate.contract.errors import MissingDependencyError, TrustError
from stategate.contract.failures import failures, first_line
from stategate.contract.reading import read_bounded
from stategate.contract.staging import scratch_folder
from stategate.runtime.trust.policy import Policy

try:
    from cryptography import x509
    from model_signing import hashing, manifest, signing, verifying
except ImportError as missing:
    raise MissingDependencyError("model-signing", "trust") from missing

_SIGNATURE_BYTES = 1 << 24


class _Contents(hashing.Config):  # type: ignore[misc]
    """What a bundle was found to hold when it was opened: no file of it is read a second time.

    So what the signature is held against are the digests that every later reading is held against,
    and nothing in the signature decides which files count.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._digests = {file.path: file.sha256 for file in bundle.manifest.all_files}
        self._digests |= {MANIFEST: bundle.digest, SEAL: sha256(seal_of(bundle.digest))}
        self._name = bundle.path.name

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """Every file of the bundle with its digest."""
        kind = manifest.SerializationType.from_args(
            {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            }
        )
        items = (
            manifest.FileManifestItem(
                path=PurePosixPath(path), digest=hashing.hashing.Digest("sha256", bytes.fromhex(d))
            )
            for path, d in sorted(self._digests.items())
        )
        return manifest.Manifest(self._name, items, kind)


def signer_of(bundle: Bundle) -> Any:
    """The library's configuration to sign every file of a bundle."""
    _refuse_strays(bundle)
    return signing.Config().set_hashing_config(_Contents(bundle))


def check_signature(bundle: Bundle, policy: Policy, folder: Path) -> str:
    """Hold a bundle's signature against those whom a policy names; whose it is, in words.

    Raises:
        TrustError: It is missing, wrong, or of nobody who is accepted.
    """
    _refuse_strays(bundle)
    path = bundle.path / SIGNATURE
    try:
        raw = read_bounded(path, _SIGNATURE_BYTES)
    except FileNotFoundError:
        raise TrustError(
            "the bundle is not signed",
            found=f"no {SIGNATURE} in {bundle.path}",
            remedy="its author signs it with: "
            f"stategate sign {shlex.quote(str(bundle.path))} --key author.pem",
        ) from None
    except failures(OSError) as problem:
        raise TrustError("the signature cannot be read", found=problem) from problem
    return check_signed(raw, bundle.path, policy, folder, _Contents(bundle))


def check_signed(
    raw: bytes, model: Path, policy: Policy, folder: Path, contents: Any = None
) -> str:
    """Hold a signature over any model against those whom a policy names; whose it is, in words.

    Args:
        raw: The signature.
        model: A folder or a file; read only where ``contents`` is left out.
        policy: Who is accepted.
        folder: Where the paths of the policy start from.
        contents: What the model holds, see `_Contents`.
    """
    with scratch_folder() as scratch:
        # The library wants a path; what it reads there are the bytes that were read once.
        copy = Path(scratch) / SIGNATURE
        copy.write_bytes(raw)
        tried: list[str] = []
        try:
            for who, configure in _signers(raw, policy, folder):
                try:
                    config = configure()
                    if contents is not None:
                        config.set_hashing_config(contents)
                    config.verify(model, copy)
                    return who
                except failures() as problem:
                    tried.append(f"{who}: {_in_words(problem)}")
        except failures() as problem:  # what no library expects in a signature
            tried.append(_in_words(problem))
    raise TrustError(
        "the signature is not one that this machine accepts",
        found="; ".join(tried) or "it is of another kind than what is trusted",
        expected="a signature over exactly these files, by one of those who are trusted",
        remedy="get the bundle again from its author; do not use this one",
    )


def _in_words(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {first_line(problem)}"


def _signers(raw: bytes, policy: Policy, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Who might have signed so, each with how the library checks it."""
    record = json.loads(raw)
    material = record["verificationMaterial"]
    if len(record["dsseEnvelope"]["signatures"]) != 1:
        raise ValueError("it does not hold one signature")  # others would be looked at by nobody
    if "publicKey" in material:
        for name in policy.keys:
            yield (
                f"key {name}",
                partial(verifying.Config().use_elliptic_key_verifier, public_key=folder / name),
            )
    elif "x509CertificateChain" in material:
        raws = (c["rawBytes"] for c in material["x509CertificateChain"]["certificates"])
        chain = [x509.load_der_x509_certificate(b64decode(raw)) for raw in raws]
        now = datetime.now(timezone.utc)
        for certificate in chain:  # the library takes the time at which the first one began
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
                raise ValueError(
                    f"a certificate is good from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and the "
                    f"clock of this machine says {now:%Y-%m-%d}"
                )
        for name in policy.certificates:
            yield (
                f"{chain[0].subject.rfc4514_string()}, known by {name}",
                partial(
                    verifying.Config().use_certificate_verifier, certificate_chain=[folder / name]
                ),
            )
    else:
        config = folder / policy.sigstore if policy.sigstore else None
        for signer in policy.identities:
            yield (
                f"{signer.identity}, known by {signer.issuer}",
                partial(
                    verifying.Config().use_sigstore_verifier,
                    identity=signer.identity,
                    oidc_issuer=signer.issuer,
                    trust_config=config,
                ),
            )


def _refuse_strays(bundle: Bundle) -> None:
    strays = bundle.undeclared_files()
    if strays:
        raise TrustError(
            "the bundle holds files that its manifest does not list",
            found=", ".join(strays[:5]),
            expected=f"its own files, and {SIGNATURE}",
            remedy="move them out of the folder",
        )
