"""The way to a plan without Python: a graph, and a shell script that has trtexec build it."""

from __future__ import annotations

import shlex
from pathlib import Path

from stategate.contract import Bundle
from stategate.contract.durable import write_whole
from stategate.contract.errors import BuildError
from stategate.contract.tensorrt_plan import VARIANT, plans_folder
from stategate.export.tensorrt.build import Settings, builder_flags
from stategate.export.tensorrt.generations import Generation, generation_of
from stategate.export.tensorrt.variant import Variant, variant

SCRIPT = "build-engine.sh"


def variant_of(bundle: Bundle, generation: Generation) -> Variant:
    """The form of a bundle's step for a generation of TensorRT."""
    manifest = bundle.manifest
    if manifest.sessions > 1:
        raise BuildError(
            "a pool cannot step with tensorrt",
            found=f"a bundle of {manifest.sessions} sessions",
            remedy="export it with --sessions 1, or step it with onnxruntime",
        )
    return variant(bundle.read(manifest.step_graph.file), manifest.step, generation)


def write_script(bundle: Bundle, version: str, settings: Settings) -> Path:
    """Write the graph for a version of TensorRT, and the script that has trtexec build it."""
    generation = generation_of(version)
    form = variant_of(bundle, generation)
    folder = plans_folder(bundle.path) / f"trtexec-{generation.name}"
    write_whole(folder / VARIANT, form.graph)
    script = folder / SCRIPT
    write_whole(script, script_of(bundle.path, form.graph, generation, settings).encode())
    script.chmod(0o755)
    return script


def script_of(bundle: Path, graph: bytes, generation: Generation, settings: Settings) -> str:
    """A shell script; what differs between releases of trtexec is asked of trtexec."""
    flags = []
    if "INT8" in (chosen := builder_flags(graph, generation, settings)):
        flags.append("--int8")
    if "FP16" in chosen:
        flags += ["--fp16", "--precisionConstraints=obey"]
    weak = " ".join(flags)
    return f"""#!/bin/sh
# Builds the engine for TensorRT {generation.name} with trtexec, on the device that will step it.
set -eu
cd "$(dirname "$0")"
trtexec=${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}
help=$("$trtexec" --help 2>&1 || true)
has() {{ printf '%s' "$help" | grep -q -e "$1"; }}
flags="--memPoolSize=workspace:{settings.workspace_bytes >> 20} --noTF32 {weak}"
if {"true" if generation.strongly_typed else "false"} && has --stronglyTyped; then
  flags="$flags --stronglyTyped"
fi
if has --skipInference; then flags="$flags --skipInference"; else flags="$flags --buildOnly"; fi
"$trtexec" --onnx={VARIANT} --saveEngine=trtexec.plan $flags > trtexec.log 2>&1 || {{
  tail -n 20 trtexec.log >&2
  exit 1
}}
stategate device build-engine {shlex.quote(f"../../{bundle.name}")} --adopt-plan trtexec.plan
"""
