"""Whether TensorRT on a target would take a step, said when the bundle is made."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import click
import onnx

from stategate.contract.errors import GraphError, TargetError
from stategate.export.candidate import Candidate
from stategate.export.passes.pinned import pinned
from stategate.export.tensorrt.generations import Generation, generation_of
from stategate.export.tensorrt.rules import check_legal, findings
from stategate.targets import TargetProfile
from stategate.targets.ladder import load_ladder


def generations_of(profile: TargetProfile) -> list[Generation]:
    """The generations of TensorRT that a target's releases of JetPack ship; empty for no Jetson."""
    supported = profile.jetpack.value if profile.jetpack is not None else None
    generations: dict[str, Generation] = {}
    for release in load_ladder().release:
        if release.jetpack in (supported or ()) and release.tensorrt is not None:
            try:
                generation = generation_of(release.tensorrt)
            except TargetError:
                continue  # JetPack 4: too old for any TensorRT engine
            generations[generation.name] = generation
    return list(generations.values())


def note_tensorrt(
    candidate: Candidate, profile: TargetProfile, *, required: bool = False
) -> Candidate:
    """Check a step against every TensorRT of its target, and note the result in the bundle."""
    generations = generations_of(profile)
    if required and not generations:
        raise TargetError(
            f"no TensorRT of target {profile.name} is known",
            expected="a Jetson with JetPack 5.1 or newer",
            remedy="leave --require-tensorrt out, or choose another --target",
        )
    model = onnx.load_model_from_string(candidate.graph)
    with suppress(GraphError):  # then every open extent is a finding
        model = pinned(model, candidate.spec)
    verdicts = []
    for generation in generations:
        if required:
            check_legal(model, candidate.spec, generation)
        problems = findings(model, candidate.spec, generation)
        verdicts.append(f"{generation.name} {'refuses' if problems else 'takes'} it")
        if problems:
            click.echo(f"TensorRT {generation.name} would not take this step:", err=True)
            for one in problems[:3]:
                click.echo(f"  {one}", err=True)
            if len(problems) > 3:
                click.echo(f"  and {len(problems) - 3} more", err=True)
    if not verdicts:
        return candidate
    return replace(candidate, metadata=candidate.metadata | {"tensorrt": ", ".join(verdicts)})
