"""``stategate inspect`` and ``stategate verify``: what a bundle promises, and whether it is so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

import stategate
from stategate.bench.wear import state_bytes, state_lines, write_rate
from stategate.cli.meaning import meaning_of
from stategate.cli.options import (
    BUNDLE,
    PRICE,
    bundle_verb,
    engine_option,
    flag,
    option,
    trust_option,
)
from stategate.cli.receipt import doubts, missing_part, result_of
from stategate.cli.show import Line, leave_unless, show
from stategate.common.c_library import load_obstacle
from stategate.contract import Bundle, Manifest
from stategate.contract.bundle import SIGNATURE
from stategate.contract.c_library import NativeRef
from stategate.contract.manifest import TargetRef
from stategate.contract.reading import printable
from stategate.runtime.check.golden import Replay
from stategate.runtime.check.verification import VerificationReport
from stategate.runtime.engines.tensorrt_api import local_plans
from stategate.runtime.keep.journal import Reading, read_journal
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import newest_in
from stategate.runtime.trust import code

_NAMES = 20  # of undeclared files that are listed


@bundle_verb()
@option("--snapshots", type=BUNDLE, help="Also show the ledger of the newest save in this folder.")
def inspect(bundle: Path, snapshots: Path | None) -> None:
    """Show what BUNDLE promises, after checking every digest, and the TensorRT engines beside it.

    A snapshot folder may be looked into while a robot is writing to it.

    \b
    Example:
      stategate inspect build/aura --snapshots /var/lib/robot
    """
    opened = Bundle.open(bundle)
    newest = newest_in(snapshots, Codec(opened.manifest)) if snapshots is not None else None
    plans = [
        msgspec.to_builtins(stored.record) | {"hindrances": hindrances}
        for stored, hindrances in local_plans(opened)
    ]
    ledger, reading = None, Reading()
    if snapshots is not None and newest is not None:
        reading = read_journal(snapshots, newest)
        ledger = reading.newest_ledger(newest.snapshot.header.ledger)
    record = msgspec.to_builtins(opened.manifest) | {"ledger": ledger, "engines": plans}
    lines: list[Line] = [
        (label, printable(text, 1000))
        for label, text in (*describe(opened.manifest), *described_plans(opened))
    ]
    refusal = code.refusal(opened)
    if refusal is not None:
        lines.append(("native", f"not run here: {refusal}; {code.remedy(opened)}"))
    if (opened.path / SIGNATURE).exists():
        lines.append(("signature", f"{SIGNATURE}, not checked here: stategate verify --trust KEY"))
    costs = state_bytes(opened.manifest, write_rate(opened.manifest))
    lines.append(("bytes", state_lines(costs)[-1][1]))
    lines.append(("digest", opened.digest))
    if snapshots is not None and newest is None:
        lines.append(("snapshot", f"none in {snapshots}"))
    if newest is not None and ledger is not None:
        header = newest.snapshot.header
        lines.append(("snapshot", f"{header.sequence} in {newest.slot}: {newest.reason}"))
        if reading.entries:
            lines.append(("journal", f"{len(reading.entries)} commits after it"))
        for name, value in asdict(ledger).items():
            lines.append(("ledger", f"{name} {value}"))
    show(record, lines)


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """Label and text of each line about a manifest."""
    lines = [("model", f"{manifest.model.name} ({manifest.model.family})")]
    lines += [("input", f"{t.name} {t.dtype} {list(t.shape)}") for t in manifest.inputs]
    if manifest.backbone is not None:
        ref = manifest.backbone
        takes = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in ref.inputs)
        behind = f"gives the input, of {takes}; trained behind sha256 {ref.sha256[:12]}"
        lines.append(("backbone", f"{ref.file} {behind}"))
    for t in manifest.outputs:
        safe = "" if t.safe is None else f", safe {t.safe}"
        lines.append(("output", f"{t.name} {t.dtype} {list(t.shape)}{safe}"))
    hard = manifest.step.thresholds
    for state in manifest.states:
        if state.cursor is not None:
            guard = f"{state.next_value.nbytes} bytes appended when {state.gate} opens"
        elif state.folds is not None:
            guard = f"folds {state.folds} when {state.gate} opens"
        else:
            gated = state.gate in hard
            guard = f"written when {state.gate} opens" if gated else "written every step"
        shape = f"{state.name} {state.dtype} {list(state.shape)}"
        lines.append(("state", f"{shape}, {state.bytes} bytes, {guard}"))
    for gate in manifest.gates:
        text = f"{gate.name} {gate.kind}"
        if gate.threshold is not None:
            text += f", opens above {gate.threshold:g}"
        if gate.expected_write_rate is not None:
            text += f", writes {gate.expected_write_rate:.1%} of steps ({gate.expected_from})"
        lines.append(("gate", text))
    lines.append(("memory", f"{manifest.state_bytes} bytes, constant"))
    if manifest.sessions > 1:
        each = f"{manifest.sessions} in one step, {manifest.state_bytes_per_session} bytes each"
        lines.append(("sessions", f"{each}; for stategate.runtime.Pool"))
    for graph in manifest.graphs:
        text = f"{graph.role} {graph.format} opset {graph.opset}"
        text += "".join(f", operators of {domain}" for domain in graph.domains)
        text += f", {graph.steps} steps at once" if graph.steps > 1 else ""
        lines.append(("graph", text))
    way = manifest.way
    if way is not None:
        payload = f", {way.payload_bytes} bytes handed over" if way.payload else ""
        lines.append(("way", f"{way.way}{payload}: {way.why}"))
    if manifest.native is not None:
        lines.append(("native", described(manifest.native, manifest.target)))
    if manifest.health is not None:
        lines += [("health", line) for line in manifest.health.lines()[:3]]
    if manifest.no_native:
        reason = printable(manifest.no_native, 1000)
        lines.append(("native", f"no {missing_part(manifest)}: {reason}"))
    lines.append(("target", manifest.target.name if manifest.target else "any"))
    if manifest.is_lower:
        lines.append(("precision", printable(manifest.precision_words)))
    lines += meaning_of(manifest.observation)
    facts = [("fact", printable(f"{fact}: {text}")) for fact, text in manifest.metadata.items()]
    return [*lines, *_judged(manifest), *facts, ("created", manifest.created)]


def _judged(manifest: Manifest) -> list[tuple[str, str]]:
    """The verdict first, then what it is based on."""
    receipt, drift, verdict = manifest.verification, manifest.drift, manifest.verdict
    if receipt is None:
        return [(verdict, "a draft that was never held against its model")]
    lines = [(verdict, printable(result_of(receipt)))]
    if receipt.accepted is not None:
        lines.append(("accepted", printable(f"by {receipt.accepted}")))
    lines += [("note", printable(doubt)) for doubt, _ in doubts(manifest)]
    if drift is not None:
        accepted = f"; accepted by {drift.accepted}" if drift.accepted else ""
        findings = "; ".join(drift.findings) or "passed"
        text = f"{drift.steps} steps beside the float model: {findings}{accepted}"
        lines.append(("drift", printable(text)))
    elif manifest.is_lower:
        lines.append(("drift", "not judged: a candidate in lower precision"))
    return lines


def described(native: NativeRef, target: TargetRef | None = None) -> str:
    """One line about a native engine, and whether the machine and the target can load it."""
    if native.library is None:
        return f"C source by {native.generator}, not compiled"
    text = f"{native.isa} by {native.compiler}"
    if native.max_output_error is not None:
        text += f", golden output error {native.max_output_error:.2g}"
    if native.golden_digest:
        text += f", golden digest {native.golden_digest}"
    for engine, us in sorted(native.step_us.items()):
        text += f", {engine} {us:.3g} us a step"
    if (obstacle := load_obstacle(native)) is not None:
        return f"{text}; not to be loaded here, auto takes onnxruntime: {obstacle}"
    if target is not None and target.machine != native.machine:
        text += f"; for {native.machine}, so {target.name} ({target.machine}) cannot load it"
        return f"{text}; auto takes {native.fastest} on this machine"
    return text + (f"; auto takes {native.fastest}" if native.step_us else "; not measured here")


def described_plans(bundle: Bundle) -> list[tuple[str, str]]:
    """Label and text of the lines about each TensorRT plan that lies beside a bundle."""
    lines = []
    for stored, hindrances in local_plans(bundle):
        record, place = stored.record, stored.record.fingerprint
        jetson = f", Jetson Linux {place.l4t}" if place.l4t else ""
        text = (
            f"{place.library} {place.version} for {place.gpu} ({place.multiprocessors} x "
            f"{place.compute_capability}), CUDA {place.cuda}{jetson}, {place.system} "
            f"{place.machine}; plan {record.plan.sha256[:12]}, {record.plan_bytes} bytes, of graph "
            f"{place.onnx_sha256[:12]}"
        )
        lines.append(("engine", printable(text)))
        hindrance = f"not to be loaded here: {'; '.join(hindrances)}"
        lines.append(("engine", printable(hindrance if hindrances else "for this machine")))
    return lines


@bundle_verb()
@flag("--digests", "Only check digests; needs no engine.")
@option(
    "--tolerance",
    type=PRICE,
    help="Largest error of outputs and states, relative to their size; that of the receipt if left "
    "out, 0.0001 for a bundle in lower precision.",
)
@engine_option
@trust_option
@flag(
    "--allow-refused",
    "Pass a bundle that was beyond its limits and that somebody accepted, if it is intact.",
)
def verify(bundle: Path, digests: bool, allow_refused: bool, **options: Any) -> None:
    """Check the digests of BUNDLE, then replay its golden episode on this machine.

    Exits with 1 where BUNDLE is a candidate that was not judged or was refused, a file was altered,
    an undeclared file lies in the folder, an output or a state is further off than the tolerance,
    or a gate decides differently.

    \b
    Examples:
      stategate verify build/aura
      stategate verify build/aura --digests
      stategate verify build/aura --engine native
      stategate verify build/aura --trust author.pub
    """
    result = stategate.verify(bundle, digests_only=digests, **options)
    manifest = result.bundle.manifest
    standing = manifest.standing
    passed = result.passed or (allow_refused and standing == "refused" and result.intact)
    record = {
        "passed": passed,
        "digest": result.bundle.digest,
        "files": len(manifest.all_files) + 1,
        "undeclared_files": [printable(name, 4096) for name in result.undeclared_files],
        "standing": standing,
        "signer": printable(result.signer),
        "replay": result.replay,
    }
    behaviour = [] if digests else [("behaviour", _replayed(result.replay))]
    lines = [*_digests(result), *behaviour, "passed" if passed else "FAILED"]
    show(record, lines)
    leave_unless(passed)


def _digests(result: VerificationReport) -> Iterator[Line]:
    manifest, undeclared = result.bundle.manifest, result.undeclared_files
    yield "digests", f"{len(manifest.all_files) + 1} files as sealed"
    if result.signer:
        yield "signed", f"by {printable(result.signer)}"
    for name in undeclared[:_NAMES]:
        yield "digests", f"{printable(name)} is not in the manifest; it is never loaded"
    if len(undeclared) > _NAMES:
        yield "digests", f"and {len(undeclared) - _NAMES:,} more; see --json"
    yield from _judged(manifest)
    if manifest.standing in _NOT_SEALED:
        yield "receipt", _NOT_SEALED[manifest.standing]


_NOT_SEALED = {
    "candidate": "none: a candidate; judge it with stategate drift --seal",
    "refused": "beyond its limits, and accepted by somebody; to pass it all the same: "
    "--allow-refused",
}


def _replayed(result: Replay | None) -> str:
    if result is None:
        return "not checked: the bundle carries no golden episode"
    others = {
        "by the chunk": result.max_chunk_error,
        "in one graph": result.max_fused_error,
        "of the prologue": result.max_prologue_error,
    }
    more = "".join(f", output error {how} {e:.2g}" for how, e in others.items() if e is not None)
    allowed = "" if result.is_exact else f" (errors allowed {result.tolerance:g})"
    return f"{result.steps} golden steps: {result.summary}{allowed}{more}"
