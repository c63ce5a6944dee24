"""What the exporter tells about a bundle that it sealed."""

from __future__ import annotations

import json
from shlex import quote

import click
import msgspec

from stategate.contract import Bundle
from stategate.contract.reading import printable
from stategate.contract.receipts import NOISE


def print_receipt(bundle: Bundle, as_json: bool) -> None:
    """Tell what was written, and what the parity check could not see."""
    manifest = bundle.manifest
    receipt = manifest.verification
    if manifest.no_native:
        missing = "library" if manifest.native is not None else "engine"
        reason = printable(manifest.no_native, 1000).replace("BUNDLE", quote(str(bundle.path)))
        click.echo(f"no native {missing}, onnxruntime steps this bundle: {reason}", err=True)
    if as_json:
        facts = {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "model": manifest.model.name,
            "target": manifest.target.name if manifest.target else None,
            "state_bytes": manifest.state_bytes,
            "sessions": manifest.sessions,
            "observations": manifest.metadata.get("observations"),
            "standing": manifest.standing,
            "verification": msgspec.to_builtins(receipt),
            "no_native": manifest.no_native,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"{bundle.path}: {manifest.model.name}, {manifest.state_bytes:,} bytes of memory")
    if "observations" in manifest.metadata:
        click.echo(f"observations: {printable(manifest.metadata['observations'])}")
    if manifest.is_lower:
        click.echo(printable(manifest.precision_words))
    if receipt is None:
        return
    click.echo(
        f"{manifest.verdict} over {receipt.steps:,} steps of {receipt.inputs.words} against "
        f"{receipt.reference}: {receipt.errors}, {receipt.gate_flips} gate flips"
    )
    if receipt.accepted is not None:
        click.echo(f"accepted beyond its limits by {receipt.accepted}", err=True)
    if manifest.standing == "candidate":
        click.echo(
            f"a candidate, to be judged: stategate drift FLOAT {bundle.path} --episode HELD_OUT "
            "--out REPORT --seal BUNDLE",
            err=True,
        )
    if receipt.inputs.kind == "noise":
        click.echo(
            f"note: {NOISE}; give a recording with --episode, or ranges with --range", err=True
        )
    for note in receipt.notes:
        click.echo(f"note: {note}", err=True)
    whole = {gate.name for gate in manifest.gates if gate.granularity == "step"}
    for gate, openings in receipt.gate_openings.items():
        # Of a gate by head or slot the receipt cannot tell: it counts steps with any of them open.
        always = receipt.steps * manifest.sessions if gate in whole else None
        if openings in (0, always):
            side = "never" if openings == 0 else "always"
            click.echo(
                f"note: gate {gate!r} was {side} open in the check; give real inputs with "
                "--episode to see both sides",
                err=True,
            )
