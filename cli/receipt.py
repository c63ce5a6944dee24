"""The receipt of a parity check as the verbs print it, and what the check could not see."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

import click

from stategate.cli.show import Line, show, wants_json
from stategate.contract import Bundle, Manifest
from stategate.contract.reading import printable
from stategate.contract.receipts import NOISE, Verification


def print_receipt(bundle: Bundle) -> None:
    """Print what was written; doubts and next steps go to stderr."""
    manifest, receipt = bundle.manifest, bundle.manifest.verification
    if manifest.no_native:
        reason = printable(manifest.no_native, 1000).replace("BUNDLE", quote(str(bundle.path)))
        _warn(f"no native {missing_part(manifest)}, onnxruntime steps this bundle: {reason}")
    record = {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "model": manifest.model.name,
        "target": manifest.target.name if manifest.target else None,
        "state_bytes": manifest.state_bytes,
        "sessions": manifest.sessions,
        "observations": manifest.metadata.get("observations"),
        "standing": manifest.standing,
        "verification": receipt,
        "no_native": manifest.no_native,
    }
    show(record, _receipt(bundle))
    if receipt is None or wants_json():
        return
    if receipt.accepted is not None:
        _warn(f"accepted beyond its limits by {receipt.accepted}")
    if manifest.standing == "candidate":
        _warn(
            f"a candidate, to be judged: stategate drift FLOAT {bundle.path} --episode HELD_OUT "
            "--out REPORT --seal BUNDLE"
        )
    for doubt, remedy in doubts(manifest):
        _warn(f"note: {doubt}{remedy and f'; {remedy}'}")


def _receipt(bundle: Bundle) -> Iterator[Line]:
    manifest = bundle.manifest
    yield f"{bundle.path}: {manifest.model.name}, {manifest.state_bytes:,} bytes of memory"
    if "observations" in manifest.metadata:
        yield f"observations: {printable(manifest.metadata['observations'])}"
    if "deferral" in manifest.metadata:
        yield f"deferral, {printable(manifest.metadata['deferral'], 1000)}"
    if manifest.is_lower:
        yield printable(manifest.precision_words)
    if manifest.verification is not None:
        yield f"{manifest.verdict} over {result_of(manifest.verification)}"


def result_of(receipt: Verification) -> str:
    """What was compared with what, and how far apart they were."""
    return (
        f"{receipt.steps:,} steps of {receipt.inputs.words} against {receipt.reference}: "
        f"{receipt.errors}, {receipt.gate_flips} gate flips"
    )


def missing_part(manifest: Manifest) -> str:
    """What a bundle without a native engine lacks of it."""
    return "library" if manifest.native is not None else "engine"


def doubts(manifest: Manifest) -> list[tuple[str, str]]:
    """What the check could not see, each with what would show it, or nothing."""
    receipt = manifest.verification
    if receipt is None:
        return []
    lines = [(note, "") for note in receipt.notes]
    if "attention" in manifest.metadata:
        lines.append((printable(manifest.metadata["attention"], 1000), ""))
    if receipt.inputs.kind == "noise":
        lines.insert(0, (NOISE, "give a recording with --episode, or ranges with --range"))
    if manifest.native is not None and manifest.native.inexact:
        named = ", ".join(map(printable, manifest.native.inexact))
        lines.append(
            (
                f"the C library decides the last bits of {named} in the native engine, so its "
                "outputs may differ from one machine to another",
                "",
            )
        )
    # Of a gate by head or slot the receipt counts steps with any of them open.
    whole = {gate.name for gate in manifest.gates if gate.granularity == "step"}
    for gate, openings in receipt.gate_openings.items():
        always = receipt.steps * manifest.sessions if gate in whole else None
        if openings in (0, always):
            side = "never" if openings == 0 else "always"
            remedy = "give real inputs with --episode to see both sides"
            lines.append((f"gate {gate!r} was {side} open in the check", remedy))
    return lines


def _warn(line: str) -> None:
    click.echo(line, err=True)
