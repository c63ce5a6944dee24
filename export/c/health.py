"""The health envelope as a header of its own: tables of one model around code for all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from stategate.contract import Manifest, TensorSpec
from stategate.contract.health import CLIP, MOST_ELEMENTS, Watched, places_of
from stategate.export.c.names import filled, members

HEADER = "native/stategate_health.h"


def health_header(manifest: Manifest) -> bytes:
    """The header of a bundle that has an envelope and C source."""
    envelope, step = manifest.health, manifest.step
    assert envelope is not None
    numbers = [w for w in envelope.watched if w.source != "state"]
    states = envelope.watched[len(numbers) :]
    thresholds = step.thresholds
    hard = [i for i, w in enumerate(numbers) if w.source == "gate" and w.tensor in thresholds]
    places = [places_of(envelope.watched, level) for level in range(2)]
    short, long = envelope.levels[0], envelope.levels[-1]
    parts = {
        "NUMBERS": len(numbers),
        "GATES": len(hard),
        "PLACES": len(places[0]),
        "WINDOW": short.window,
        "IN_A_ROW": short.windows_in_a_row,
        "LONG_PLACES": len(places[1]),
        "LONG_WINDOW": long.window,
        "LONG_IN_A_ROW": long.windows_in_a_row,
        "WARM": envelope.warm_steps,
    }
    each = [(level, envelope.watched[i], kind) for level in (0, 1) for i, kind in places[level]]
    limits = [watched.limits_of(level)[kind] for level, watched, kind in each]
    words = [
        f"{watched.words} {kind}" + " of long windows" * level for level, watched, kind in each
    ]
    words = [text.encode("ascii", "replace").decode() for text in words]
    bounds = ", ".join(f"{_float(thresholds[numbers[i].tensor])}" for i in hard)
    return filled(
        "stategate_health.h.in",
        CLIP=CLIP,
        DEFINES="\n".join(f"#define STATEGATE_HEALTH_{name} {n}u" for name, n in parts.items()),
        LIMITS=",\n".join("    {" + ", ".join(map(_integer, four)) + "}" for four in limits),
        SCALES=", ".join(_float(2.0**w.exponent) for w in numbers),
        PAIRS=", ".join(f"{w.pair}u" for w in numbers),
        HARD=f"    static const uint32_t hard[] = {{{', '.join(f'{i}u' for i in hard) or 0}}};\n"
        f"    static const float thresholds[] = {{{bounds or '0.0f'}}};\n",
        OF_MEMORY=", ".join(f"{int(watched.source != 'input')}u" for _, watched, _ in each),
        SUMS=", ".join(f"{places[0].index(place)}u" for place in places[1]),
        NUMBERS="".join(_copies(manifest, numbers)),
        STATES="".join(_sizes(manifest, states, len(places[0]) - len(states))),
        # Last, because a name may look like another part.
        WORDS=",\n".join(f"    {json.dumps(text)}" for text in words),
    ).encode()


def _integer(number: int) -> str:
    return f"INT64_C({number})"


def _float(number: float) -> str:
    return f"{float(number).hex()}f"


def _copies(manifest: Manifest, numbers: Sequence[Watched]) -> Iterator[str]:
    step, at = manifest.step, 0
    gates = [TensorSpec(gate.name, gate.shape) for gate in step.gates]
    named = {
        "input": members(t.name for t in step.inputs),
        "gate": members(t.name for t in (*step.outputs, *gates)),
    }
    for (source, tensor), group in groupby(numbers, lambda w: (w.source, w.tensor)):
        elements = [w.element for w in group]
        stride = elements[1] - elements[0] if len(elements) > 1 else 1
        array = f"{'in' if source == 'input' else 'out'}->{named[source][tensor]}"
        yield (
            f"    for (uint32_t i = 0; i < {len(elements)}u; ++i) {{\n"
            f"        numbers[{at}u + i] = (float){array}[i * {stride}u];\n"
            "    }\n"
        )
        at += len(elements)


def _sizes(manifest: Manifest, states: Sequence[Watched], place: int) -> Iterator[str]:
    step = manifest.step
    member = members(s.name for s in step.states)
    hard = [gate.name for gate in step.gates if gate.kind == "hard"]
    specs = {s.name: s for s in step.states}
    for k, watched in enumerate(states, place):
        spec = specs[watched.tensor]
        group = hard.index(spec.gate) if spec.gate in hard else len(hard)
        size = math.prod(spec.shape)
        stride = -(-size // MOST_ELEMENTS)
        yield (
            f"    values[{k}] = 0;\n"
            f"    for (uint32_t i = 0; i < {size}u; i += {stride}u) {{\n"
            "        values["
            f"{k}] += stategate_health_size(stategate_health_whole((float)session->bank[\n"
            f"            (session->parity >> {group}u) & 1u].{member[watched.tensor]}[i], "
            f"{_float(2.0**watched.exponent)}));\n"
            "    }\n"
        )
