"""Signing a bundle as its author, in the form of OpenSSF Model Signing (OMS) 1.0."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from stategate.contract import Bundle
from stategate.contract.arguments import checks_kinds
from stategate.contract.bundle import SIGNATURE
from stategate.contract.durable import write_whole
from stategate.contract.errors import TrustError
from stategate.contract.failures import failures, first_line
from stategate.contract.staging import scratch_folder

_NEW_KEY = "[ -e author.pem ] || openssl ecparam -name prime256v1 -genkey -noout -out author.pem"


@checks_kinds
def sign(
    bundle: str | Path | Bundle,
    *,
    key: str | Path | None = None,
    password: str | None = None,
    certificate: str | Path | None = None,
    chain: Iterable[str | Path] = (),
    sigstore: bool = False,
) -> Path:
    """Sign a bundle as its author: its manifest and every file that this lists.

        stategate.sign("build/policy", key="author.pem")

    Args:
        bundle: Its folder; ``model.sig`` is written there, in the place of an older one.
        key: Private key in PEM, on the curve P-256, P-384 or P-521.
        password: Of the key, where it has one.
        certificate: Certificate of the key, where those who verify know who issues it.
        chain: Certificates between that one and the one that they know.
        sigstore: Sign without a key, by a login at an identity provider; needs a network.

    Returns:
        Path of the signature.

    Raises:
        BundleError: It is no bundle, or a file was altered (`DigestError`).
        TrustError: It cannot be signed: the key is missing, of another kind or not the
            certificate's, or the folder holds files that the manifest does not list.
        MissingDependencyError: The library for signatures is not installed.
    """
    from stategate.runtime.trust.signature import signer_of

    opened = Bundle.open(bundle)
    config = signer_of(opened)
    if (key is None) == (not sigstore):
        raise TrustError(
            "a bundle is signed with a key or with sigstore",
            found="neither" if key is None else "both",
            remedy=f"{_NEW_KEY}; stategate sign {shlex.quote(str(opened.path))} --key author.pem",
        )
    chain = tuple(chain)
    unused = {
        "password": password is not None and sigstore,
        "certificate": certificate is not None and sigstore,
        "chain": bool(chain) and certificate is None,
    }
    if named := [name for name, is_unused in unused.items() if is_unused]:
        raise TrustError(
            "something was given that this signature would not hold",
            found=", ".join(named),
            expected="a password and a certificate with a key, a chain with a certificate",
            remedy="leave it out, or add --certificate author.crt" if not sigstore else None,
        )
    path = opened.path / SIGNATURE
    with scratch_folder() as scratch:
        fresh = Path(scratch) / SIGNATURE
        try:
            if key is None:
                config.use_sigstore_signer(use_ambient_credentials=True)
            elif certificate is None:
                config.use_elliptic_key_signer(
                    private_key=key, password=password.encode() if password else None
                )
            else:
                config.use_certificate_signer(
                    private_key=key, signing_certificate=certificate, certificate_chain=chain
                )
            config.sign(opened.path, fresh)
        except failures() as problem:  # a library of five libraries has many ways to say no
            raise TrustError(
                "the bundle cannot be signed",
                found=first_line(problem),
                expected="a private key in PEM on the curve P-256, P-384 or P-521"
                + (", and its certificate" if certificate else "")
                if key
                else "a network, and a login at an identity provider",
                remedy=_NEW_KEY if key else None,
            ) from problem
        write_whole(path, fresh.read_bytes())
    return path
