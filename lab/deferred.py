"""Deferred writes against plain ones: bytes, time of a step in C, and errors against float64."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from torch import nn

import stategate
from stategate.common.compiler import compile_library
from stategate.contract import Bundle, Episode, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import MeasurementError
from stategate.models.memories.delta.cell import Carried, Tokens, step
from stategate.models.memories.matrix import Ring
from stategate.models.step import StepResult, Tensors
from stategate.runtime import Session

# Heads, and width of a key and a value: in the first-level cache, in the second, and beyond it.
FORMS = ((1, 128), (4, 128), (64, 128), (4, 64))
LENGTHS = (8, 16)
_LOOP = b"""
#define _POSIX_C_SOURCE 199309L
#include <time.h>
typedef int (*step)(void *session, const void *in, void *out);
__attribute__((visibility("default"))) double burst(
    step one, void *session, const char *in, unsigned long each, void *out, int steps)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < steps; ++i) {
        if (one(session, in + (unsigned long)i * each, out) < 0) {
            return -1.0;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    return ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / steps;
}
"""
_CACHE_LINE = 64
_BURST = 32  # steps of one figure: whole turns of every length
_ROOM = 1 << 16  # of a session beside its states, and of its outputs beside them


class Heads(nn.Module):
    """Heads of Gated DeltaNet-2 alone, whose keys, values and gates are inputs."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self._heads, self._dim = heads, dim

    def step_spec(self) -> StepSpec:
        """Six rows of tokens in, one out."""
        n, d = self._heads, self._dim
        return StepSpec(
            tuple(TensorSpec(name, (1, n, d)) for name in Tokens._fields),
            (TensorSpec("o", (1, n, d)),),
            (
                StateSpec("S", (1, n, d, d), gate="write", layout="head, key, value"),
                StateSpec("log_decay", (1, n, d)),
            ),
            (GateSpec("write", "hard", (1, n), 0.0, "threshold", granularity="head"),),
        )

    def rings(self) -> tuple[Ring, ...]:
        """The matrix can wait."""
        return (Ring("ring", self._heads, self._dim, self._dim, {"S": self._dim}),)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One token for each head."""
        tokens = Tokens(*(inputs[name] for name in Tokens._fields))
        carried = Carried(states["S"], states["log_decay"])
        o, after, gate = step(tokens, carried, inputs["threshold"], "gate")
        return StepResult({"o": o}, after._asdict(), {"write": gate})


def tokens(heads: int, dim: int, steps: int, seed: int = 0) -> Episode:
    """Unit keys and queries, gates between 0 and 1, decays that forget in 1 to 1,000 steps."""
    rng = np.random.default_rng(seed)
    form = (steps, 1, heads, dim)
    unit = {name: rng.normal(size=form) for name in "qk"}
    unit = {n: x / np.sqrt((x * x).sum(-1, keepdims=True)) for n, x in unit.items()}
    rates = np.exp(rng.uniform(np.log(1e-3), 0.0, size=(1, 1, heads, dim)))
    inputs = {
        **unit,
        "v": rng.normal(size=form),
        "g": -rates * rng.uniform(0.0, 2.0, size=form),
        "b": rng.uniform(0.0, 1.0, size=form),
        "w": rng.uniform(0.0, 1.0, size=form),
    }
    return Episode({name: inputs[name].astype(np.float32) for name in Tokens._fields})


class InC:
    """Steps of a bundle's library in a session of C, in bursts that a loop of C times."""

    def __init__(self, path: Path, episode: Episode, loop: Any) -> None:
        bundle = Bundle.open(path)
        native, spec = bundle.manifest.native, bundle.manifest.step
        if native is None or native.library is None:
            raise MeasurementError("the bundle has no native library", found=path)
        library = path / native.library
        header = library.with_name("stategate.h").read_text()
        layout = re.search(r"STATEGATE_LAYOUT UINT64_C\((0x\w+)\)", header)
        assert layout is not None
        self._library, self._loop = ctypes.CDLL(str(library.resolve())), loop
        self._session = _aligned(2 * sum(s.bytes + _CACHE_LINE for s in spec.states) + _ROOM)
        start = ctypes.c_void_p(self._session.ctypes.data)
        self._library.stategate_init_as(start, ctypes.c_uint64(int(layout[1], 16)))
        sizes = [-(-t.nbytes // _CACHE_LINE) * _CACHE_LINE for t in spec.inputs]
        self._each = sum(sizes)
        self._inputs = _aligned(self._each * episode.steps).reshape(episode.steps, self._each)
        at = 0
        for tensor, size in zip(spec.inputs, sizes, strict=True):
            raw = episode.inputs[tensor.name].reshape(episode.steps, -1).view(np.uint8)
            self._inputs[:, at : at + tensor.nbytes] = raw
            at += size
        self._outputs = _aligned(sum(t.nbytes + _CACHE_LINE for t in spec.outputs) + _ROOM)

    def nanoseconds(self) -> float:
        """Of one step, over all inputs once."""
        arrays = (self._session, self._inputs, self._outputs)
        session, inputs, outputs = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
        call = ctypes.cast(self._library.stategate_step, ctypes.c_void_p)
        each = ctypes.c_ulong(self._each)
        took = float(self._loop(call, session, inputs, each, outputs, len(self._inputs)))
        if took <= 0:
            raise MeasurementError("a step failed in C")
        return took


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + nbytes]


def _exact(episode: Episode) -> np.ndarray:
    """What the heads say by their equations, in float64: ``(steps, 1, heads, value)``."""
    q, k, v, g, b, w = (episode.inputs[name][:, 0].astype(np.float64) for name in Tokens._fields)
    steps, heads, dim = q.shape
    S, answers = np.zeros((heads, dim, dim)), np.empty((steps, 1, heads, dim))
    for t in range(steps):
        S *= np.exp(g[t])[:, :, np.newaxis]
        u = w[t] * v[t] - np.einsum("hk,hkv->hv", b[t] * k[t], S)
        S += k[t][:, :, np.newaxis] * u[:, np.newaxis]
        answers[t, 0] = np.einsum("hk,hkv->hv", q[t], S) / np.sqrt(dim)
    return answers


def _stepped(path: Path, episode: Episode, exact: np.ndarray) -> tuple[float, float]:
    """Bytes of state that a step writes for the matrix, and the largest error of an output."""
    with Session.open(path, engine="native") as session:
        worst = 0.0
        for inputs, right in zip(episode, exact, strict=True):
            worst = max(worst, float(np.abs(session.step(**inputs)["o"] - right).max()))
        ledger = session.ledger
    matrix = sum(ledger.state_bytes_written.get(name, 0) for name in ("S", "ring"))
    return matrix / ledger.steps, worst


def rows(
    heads: int, dim: int, folder: Path, loop: Any, bursts: int, steps: int
) -> list[dict[str, Any]]:
    """One row for each length, all timed in turns."""
    model, short = Heads(heads, dim), tokens(heads, dim, 64)
    paths: dict[int | None, Path] = {}
    for length in (None, *LENGTHS):
        paths[length] = folder / f"{heads}x{dim}-{length}"
        if paths[length].exists():
            continue
        stategate.make(
            model,
            paths[length],
            engines="native",
            split="fused",
            episode=short,
            steps=64,
            defer=length,
        )
    runs = {n: InC(path, tokens(heads, dim, _BURST), loop) for n, path in paths.items()}
    best = dict.fromkeys(runs, np.inf)
    for _ in range(bursts):
        for n, run in runs.items():
            best[n] = min(best[n], run.nanoseconds())
    episode = tokens(heads, dim, steps, seed=1)
    exact = _exact(episode)
    plain_bytes, plain_error = _stepped(paths[None], episode, exact)
    results = []
    for length in LENGTHS:
        nbytes, error = _stepped(paths[length], episode, exact)
        results.append(
            {
                "model": f"{heads} heads of {dim} x {dim}",
                "state_bytes": 4 * heads * dim * dim,
                "L": length,
                "bytes_plain": plain_bytes,
                "bytes_deferred": nbytes,
                "plain_us": best[None] / 1e3,
                "time_ratio": best[length] / best[None],
                "error": error,
                "plain_error": plain_error,
            }
        )
    return results


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="build/bench/deferred.json")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Of bundles; those there are taken."
)
@click.option("--bursts", default=300, help="Bursts of 32 steps, of which the best counts.")
@click.option("--steps", default=2048, help="Steps of the errors against float64.")
def deferred(out: Path, folder: Path | None, bursts: int, steps: int) -> None:
    """Bytes, time and error of deferred writes, for heads of Gated DeltaNet-2 alone."""
    results = []
    with TemporaryDirectory() as scratch:
        library = Path(scratch) / "loop.so"  # written once: it stays mapped
        library.write_bytes(compile_library({"loop.c": _LOOP}).library)
        loop = ctypes.CDLL(str(library)).burst
        loop.restype = ctypes.c_double
        place = folder or Path(scratch)
        for heads, dim in FORMS:
            for row in rows(heads, dim, place, loop, bursts, steps // min(heads, 16)):
                results.append(row)
                click.echo(
                    "{model}, L = {L}: {bytes_plain:,.0f} bytes a step are {bytes_deferred:,.0f}, "
                    "time {time_ratio:.2f}, error {error:.2g} (plain {plain_error:.2g})".format(
                        **row
                    )
                )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": results}, indent=1) + "\n")
