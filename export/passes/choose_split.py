"""One graph or two: that two give the same bits is proven, then the cheaper layout is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx

from stategate.common.build_time import may_measure
from stategate.contract import Episode, StepSpec
from stategate.contract.dtypes import dtype_named
from stategate.contract.errors import SplitError
from stategate.contract.rings import following
from stategate.contract.split import Way
from stategate.contract.write_rule import opens
from stategate.export.candidate import Candidate, Role
from stategate.export.passes.graph import serialised
from stategate.export.passes.split import Split, quiet, read_write
from stategate.export.timing import medians_us, optimised, sample

Layout = Literal["auto", "read-write", "quiet", "fused"]
Arrays = dict[str, np.ndarray]

PROOF_STEPS = 200
_SPLITS = {"read-write": read_write, "quiet": quiet}
# In this order: a write of the second takes the whole step again.
_ORDER: tuple[Literal["read-write", "quiet"], ...] = ("read-write", "quiet")
_ALWAYS, _NEVER = np.finfo(np.float32).min, np.finfo(np.float32).max


def choose_layout(
    candidate: Candidate, layout: Layout, episode: Episode, measure: bool
) -> Candidate:
    """The candidate, with its step in two graphs where that is asked for or is cheaper.

    To ``measure`` is for the machine that will step it: the cost is its time, and otherwise, or
    where SOURCE_DATE_EPOCH asks for the same bytes every time, the elements that are computed.
    """
    if layout == "fused":
        return replace(candidate, way=Way("fused", "asked for"))
    if candidate.sessions > 1:
        problem = f"{candidate.sessions} sessions in one step, each with gates of its own"
        if layout != "auto":
            raise SplitError("a step for a pool is not taken apart", found=problem)
        return replace(candidate, way=Way("fused", problem))
    graph = onnx.load_model_from_string(candidate.graph)
    reasons: list[str] = []
    for way in _ORDER if layout == "auto" else (layout,):
        try:
            split = _SPLITS[way](graph, candidate.spec)
            graphs: dict[Role, bytes] = {"read": serialised(split.read)}
            if split.write is not None:
                graphs["write"] = serialised(split.write)
            rate = _proven_write_rate(candidate, graphs, episode)
        except SplitError as problem:
            if layout != "auto":
                raise
            # The manifest keeps one line: what is wrong, and what was found.
            reasons.append(str(problem).partition("\n  expected")[0].replace("\n  ", ", "))
        else:
            break
    else:
        return replace(candidate, way=Way("fused", "; ".join(dict.fromkeys(reasons))))
    fused, two, unit = _costs(candidate, split, graphs, rate, measure)
    reasons.append(f"{unit} a step at {rate:.1%} writes: fused {fused:,.1f}, {way} {two:,.1f}")
    if layout != "auto":
        reasons.append("asked for")
    elif fused <= two:
        return replace(candidate, way=Way("fused", "; ".join(reasons)))
    return replace(candidate, way=Way(way, "; ".join(reasons), split.payload), parts=graphs)


def _costs(
    candidate: Candidate, split: Split, graphs: dict[Role, bytes], rate: float, measure: bool
) -> tuple[float, float, str]:
    """Mean cost of a step in one graph and in two, and its unit."""
    if not (measure and may_measure()):
        two = split.read_work + rate * split.write_work
        return float(split.step_work), two, "estimated elements computed in"
    feeds = sample(candidate.spec)
    for tensor in (*split.payload, *candidate.spec.graph_outputs().values()):
        feeds[tensor.name] = np.zeros(tensor.shape, tensor.dtype)
    us = medians_us({"step": candidate.graph} | {**graphs}, feeds)
    return us["step"], us["read"] + rate * us.get("write", us["step"]), "us measured for"


def _proven_write_rate(
    candidate: Candidate, graphs: Mapping[Role, bytes], episode: Episode
) -> float:
    """The share of steps in which a gate is open, over an episode in which both agree.

    Each step is compared bit for bit with its gates as they are, all open, and all closed.
    """
    spec = candidate.spec
    step, read = _Runner(candidate.graph), _Runner(graphs["read"])
    write = _Runner(graphs["write"]) if "write" in graphs else step
    initial = {s.name: np.zeros(s.shape, dtype_named(s.dtype).numpy) for s in spec.states}
    states = initial | candidate.initial
    fixed = {c.name: c.array() for c in spec.fixed_inputs}
    thresholds = {g.name: g.threshold_input for g in spec.gates if g.threshold_input}
    guarded = [s for s in spec.states if s.gate in spec.thresholds]
    # A step without the threshold as an input gives next states that nobody takes over.
    chooses = thresholds.keys() == spec.thresholds.keys()
    openings = count = 0
    for inputs in episode.resized(min(episode.steps, PROOF_STEPS)):
        feed = {**inputs, **states, **fixed}
        for threshold in (None, _ALWAYS, _NEVER):
            if threshold is not None:
                feed |= {name: np.full(1, threshold, np.float32) for name in thresholds.values()}
            whole, parts = step(feed), read(feed)
            is_open = _any_open(spec, parts, threshold)
            if is_open:
                parts |= write({**feed, **parts})
            elif chooses:
                # Of a ring nobody takes a row that is not appended.
                parts |= {s.next_name: feed[s.name] for s in guarded if s.cursor is None}
            bad = [n for n in parts if n in whole and whole[n].tobytes() != parts[n].tobytes()]
            if bad:
                raise SplitError(
                    "two graphs do not give the bits of one",
                    found=f"other bits in {', '.join(bad)} at step {count}",
                    expected="the same bits, as this engine optimises them",
                )
            if threshold is None:
                openings += is_open
                states = {
                    s.name: following(s, feed, whole[s.next_name])
                    if is_open or s not in guarded
                    else feed[s.name]
                    for s in spec.states
                }
        count += 1
    return openings / max(count, 1)


def _any_open(spec: StepSpec, gates: Arrays, threshold: np.floating[Any] | None) -> bool:
    return any(
        bool(opens(gates[gate.name], gate.threshold if threshold is None else threshold).any())
        for gate in spec.gates
        if gate.threshold is not None
    )


class _Runner:
    """A graph as the runtime optimises it, fed by name from whatever is at hand."""

    def __init__(self, graph: bytes) -> None:
        self._session = optimised(graph)
        self._takes = [node.name for node in self._session.get_inputs()]
        self._gives = [node.name for node in self._session.get_outputs()]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        results = self._session.run(None, {name: feed[name] for name in self._takes})
        return dict(zip(self._gives, results, strict=True))
