"""Putting a bundle into a registry."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from stategate.contract import Bundle, sha256
from stategate.contract.arguments import checks_kinds
from stategate.runtime.carry.artifact import packed
from stategate.runtime.carry.reference import Reference


@checks_kinds
def push(bundle: str | Path | Bundle, to: str, *, plain_http: bool = False) -> str:
    """Put a bundle, with its signature where it has one, into a registry.

        stategate.push("build/policy", "oci://registry.example.org/policies/walk:1.2")

    Files that the registry has already are not sent again, so that whoever was interrupted pushes
    again. The tag is written last, and names the whole bundle or what it named before.

    Args:
        bundle: It is opened, and every digest checked.
        to: ``oci://HOST[:PORT]/NAME[:TAG]``; the tag is ``latest`` where it is left out.
        plain_http: Ask without encryption; a registry on this machine always is.

    Returns:
        The reference by digest, which nobody can move.

    Raises:
        BundleError: There is no whole bundle.
        RegistryError: The registry does not answer, or does not take it.
    """
    from stategate.runtime.carry.registry import Repository

    reference = Reference.parse(to)
    opened = Bundle.open(bundle)
    raw, config, paths = packed(opened)
    digest = f"sha256:{sha256(raw)}"
    repository = Repository(reference, plain_http)
    for name, path in paths.items():
        repository.send(name, path)
    with TemporaryDirectory() as scratch:
        file = Path(scratch, "config.json")
        file.write_bytes(config)
        repository.send(f"sha256:{sha256(config)}", file)
    repository.tag(raw)
    return reference.at(digest)
