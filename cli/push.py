"""``stategate carry push`` and ``pull``: bundles in a registry."""

from __future__ import annotations

from pathlib import Path

import click

import stategate
from stategate.cli.options import bundle_verb, out_option, verb
from stategate.cli.show import show

_plain_http = click.option(
    "--plain-http",
    is_flag=True,
    help="Ask a registry of another machine without encryption, in a network that you trust.",
)


@bundle_verb("push")
@click.argument("to", metavar="REFERENCE")
@_plain_http
def push_command(bundle: Path, to: str, plain_http: bool) -> None:
    """Put BUNDLE into a registry, with its signature where it has one.

    What was sent before is not sent again. Names and passwords are those of docker login. Prints
    the reference by digest, which names these bytes for ever.

    \b
    Example:
      stategate carry push build/policy oci://localhost:5000/policies/walk:1.2
    """
    reference = stategate.push(bundle, to, plain_http=plain_http)
    show({"reference": reference}, [reference])


@verb("pull")
@click.argument("source", metavar="REFERENCE")
@out_option("The bundle's folder; an older bundle there is replaced in one step.")
@_plain_http
def pull_command(source: str, out: Path, plain_http: bool) -> None:
    """Take the bundle at REFERENCE out of a registry.

    Nothing is at --out before every digest was checked; what was loaded before is not loaded again.
    A digest does not say who made a bundle: see stategate verify --trust.

    \b
    Example:
      stategate carry pull oci://localhost:5000/policies/walk:1.2 --out build/walk
    """
    bundle = stategate.pull(source, out, plain_http=plain_http)
    record = {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "standing": bundle.manifest.standing,
    }
    show(record, [f"{bundle.path}: {bundle.manifest.model.name}, {bundle.digest}"])
