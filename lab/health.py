"""What the health envelope promises and sees: ``make health``.

Each model's envelope is learned on one stream and judged on others: how often it is alarmed by
nothing, and after how many steps by each fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import stategate
from lab.evidence.pages import filled
from stategate.calibration.health.learn import learn_health
from stategate.common.tables import markdown_table
from stategate.contract import Bundle, Episode
from stategate.contract.durable import write_whole
from stategate.contract.records import canonical_json
from stategate.contract.specs import Record
from stategate.models.load import load_model
from stategate.runtime import Session

Stream = NDArray[np.float32]
LEARNED, HELD_OUT, HEALTHY, WITHIN = 40_000, 100_000, 2_000, 20_000
REPEATS = 3
_SEED = 3_000_017
PAGE = Path(__file__).parents[1] / "docs/evidence/health.md"


class Detection(Record, frozen=True, kw_only=True):
    """One fault on one model: steps until the alarm, of several tries; None is never."""

    fault: str
    steps: tuple[int | None, ...]
    words: str  # of the first alarm


class Row(Record, frozen=True, kw_only=True):
    """One model."""

    model: str
    stream: str
    learned_steps: int
    windows: tuple[int, ...]  # steps of short and long ones
    windows_in_a_row: tuple[int, ...]
    watched: int
    stated_steps_per_false_alarm: float
    held_out_steps: int
    false_alarms: int
    stated_windows_outside: float  # share of windows, on average over calibrations
    windows_outside: float  # the same, measured
    warm_up_median: int | None
    warm_up_worst: int | None
    warm_up_steps: int
    off_us: float  # a step without the look
    on_us: float
    detections: tuple[Detection, ...]


def joints(steps: int, seed: int, size: int = 8) -> Stream:
    """Positions of joints that follow each other: smooth, each of its own size and pace, noisy."""
    fixed = np.random.default_rng(7)
    sizes, middles = fixed.uniform(0.3, 1.5, size), fixed.uniform(-1, 1, size)
    paces = fixed.uniform(0.06, 0.25, size)
    mix = np.eye(size) + 0.5 * fixed.standard_normal((size, size)) / size**0.5
    rng = np.random.default_rng(seed)
    drive = rng.standard_normal((steps, size))
    noise = 0.01 * rng.standard_normal((steps, size))
    first, second = np.zeros(size), np.zeros(size)
    rows = np.empty((steps, size))
    for t in range(steps):
        first += paces * (drive[t] * 2 - first)
        second += paces * (first - second)
        rows[t] = second
    return np.asarray((rows @ mix.T) * sizes * 2 + middles + noise, np.float32)


def _stuck(x: Stream, rng: np.random.Generator) -> Stream:
    bad = x.copy()
    bad[:, rng.integers(x.shape[1])] = bad[0, rng.integers(x.shape[1])]
    return bad


def _swapped(x: Stream, rng: np.random.Generator) -> Stream:
    bad = x.copy()
    one, other = rng.choice(x.shape[1], 2, replace=False)
    bad[:, [one, other]] = bad[:, [other, one]]
    return bad


def _scaled(x: Stream, rng: np.random.Generator) -> Stream:
    bad = x.copy()
    bad[:, rng.integers(x.shape[1])] *= np.minimum(1 + np.arange(len(x)) / 5_000, 2)
    return bad


def _slow(x: Stream, rng: np.random.Generator) -> Stream:
    return np.asarray(x[np.arange(len(x)) // 2])


def _fast(x: Stream, rng: np.random.Generator) -> Stream:
    return np.concatenate([x[::2], x[1::2]])


def _scene(x: Stream, rng: np.random.Generator) -> Stream:
    far = rng.choice([-1.0, 1.0], x.shape[1]) * x.std(axis=0)
    return np.asarray(x + np.minimum(np.arange(len(x)) / 5_000, 1)[:, None] * far, np.float32)


FAULTS: dict[str, Callable[[Stream, np.random.Generator], Stream]] = {
    "one element stuck": _stuck,
    "two elements swapped": _swapped,
    "scale of one drifts to double in 5,000 steps": _scaled,
    "every sample twice": _slow,
    "every second sample": _fast,
    "scene moves by one deviation in 5,000 steps": _scene,
}


def _foreign() -> object:
    """A recurrent policy of sb3-contrib, with the weights that it begins with."""
    import gymnasium
    from sb3_contrib import RecurrentPPO
    from torch import nn

    from stategate.models import from_sb3

    class Room(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (8,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, **_: object) -> tuple[NDArray[np.float32], dict[str, object]]:
            return np.zeros(8, np.float32), {}

    model = RecurrentPPO("MlpLstmPolicy", Room(), seed=0, device="cpu")
    return from_sb3(model, normalizer=nn.Identity())


def _models() -> Iterator[tuple[str, object, str, Callable[[int, int], Stream]]]:
    aura = load_model("aura-hard")

    def bindings(steps: int, seed: int) -> Stream:
        assert aura.episode is not None
        (one,) = aura.episode(steps, seed).inputs.values()
        return np.asarray(one.reshape(steps, -1))

    yield "aura-hard", "aura-hard", "binding stream, 64 features", bindings
    lstm = load_model("lstm").model.step_spec().inputs[0]
    size = int(np.prod(lstm.shape))
    yield "lstm", "lstm", f"{size} joints", lambda steps, seed: joints(steps, seed, size)
    yield "sb3-contrib RecurrentPPO", _foreign(), "8 joints", joints


def _episode(bundle: Bundle, stream: Stream) -> Episode:
    (tensor,) = bundle.manifest.inputs
    return Episode({tensor.name: stream.reshape(len(stream), *tensor.shape)})


def _until_alarm(bundle: Bundle, stream: Stream, after: int) -> tuple[int | None, str]:
    with Session.open(bundle, health="count") as session:
        for t, inputs in enumerate(_episode(bundle, stream)):
            session.step(**inputs)
            if t % 32 == 31 and t >= after and session.ledger.health_alarms:
                health = session.health
                return t + 1 - after, (health.alarm or "") if health is not None else ""
    return None, ""


def _row(name: str, model: object, stream: str, draw: Callable[[int, int], Stream]) -> Row:
    folder = Path("build/health") / name.replace(" ", "-")
    plain = stategate.make(model, folder / "plain")
    learned = draw(LEARNED, _SEED)
    bundle = learn_health(plain, _episode(plain, learned), folder / "watched")
    envelope = bundle.manifest.health
    assert envelope is not None
    short = envelope.levels[0]
    held_out = _episode(bundle, draw(HELD_OUT, _SEED + 1))
    outside = 0
    with Session.open(bundle, health="count") as session:
        for t, inputs in enumerate(held_out, 1):
            session.step(**inputs)
            if t % short.window == 0 and session.health is not None:
                departures = session.health.departures
                outside += max(d for n, d in departures.items() if " over " not in n) > 1
        false_alarms = session.ledger.health_alarms
    times = []
    for choice in ("off", "count"):
        with Session.open(bundle, health=choice) as session:
            start = time.process_time()
            for _, inputs in zip(range(20_000), held_out, strict=False):
                session.step(**inputs)
            times.append((time.process_time() - start) / 20_000 * 1e6)
    detections = []
    for fault, damage in FAULTS.items():
        tries = []
        for i in range(REPEATS):
            x = draw(HEALTHY + 2 * WITHIN, _SEED + 10 + i)
            bad = damage(x[HEALTHY:], np.random.default_rng(i))[:WITHIN]
            tries.append(_until_alarm(bundle, np.concatenate([x[:HEALTHY], bad]), HEALTHY))
        steps, words = zip(*tries, strict=True)
        detections.append(Detection(fault=fault, steps=steps, words=next(filter(None, words), "")))
        click.echo(f"{name}: {fault}: {steps} {detections[-1].words}")
    warm_up = envelope.warm_up
    assert warm_up is not None
    return Row(
        model=name,
        stream=stream,
        learned_steps=LEARNED,
        windows=tuple(level.window for level in envelope.levels),
        windows_in_a_row=tuple(level.windows_in_a_row for level in envelope.levels),
        watched=len(envelope.watched),
        stated_steps_per_false_alarm=envelope.steps_per_false_alarm,
        held_out_steps=HELD_OUT,
        false_alarms=false_alarms,
        stated_windows_outside=short.outside / (short.windows + 1),
        windows_outside=outside / (HELD_OUT // short.window),
        warm_up_median=warm_up.median,
        warm_up_worst=warm_up.worst,
        warm_up_steps=warm_up.steps,
        off_us=times[0],
        on_us=times[1],
        detections=tuple(detections),
    )


def table(rows: list[Row]) -> str:
    """The page's table: a row a figure, a column a model."""

    def worst(detection: Detection) -> str:
        late = [steps for steps in detection.steps if steps is not None]
        never = len(detection.steps) - len(late)
        return f"never in {never} of {REPEATS}" if never else f"{max(late):,}"

    def pair(numbers: tuple[int, ...]) -> str:
        return " and ".join(f"{n:,}" for n in numbers)

    def warm(row: Row) -> str:
        longer = f"more than {row.warm_up_steps:,}"
        return ", ".join(
            longer if n is None else f"{n:,}" for n in (row.warm_up_median, row.warm_up_worst)
        )

    lines: list[tuple[str, Callable[[Row], str]]] = [
        ("stream", lambda row: row.stream),
        ("learned on, steps", lambda row: f"{row.learned_steps:,}"),
        ("windows, steps", lambda row: pair(row.windows)),
        ("in a row", lambda row: pair(row.windows_in_a_row)),
        ("stated: steps per false alarm", lambda r: f"{r.stated_steps_per_false_alarm:,.0f}"),
        ("false alarms in 100,000 steps", lambda row: str(row.false_alarms)),
        ("windows outside, stated", lambda row: f"{row.stated_windows_outside:.2%}"),
        ("windows outside, measured", lambda row: f"{row.windows_outside:.2%}"),
        ("warm-up, median and worst", warm),
        ("us a step, off and on", lambda row: f"{row.off_us:.1f}, {row.on_us:.1f}"),
    ]
    cells = [[title, *(of(row) for row in rows)] for title, of in lines]
    for i, fault in enumerate(FAULTS):
        cells.append([fault, *(worst(row.detections[i]) for row in rows)])
    words = [
        f"`{detection.words}`  \n{row.model}, {detection.fault}\n"
        for row in rows
        for detection in row.detections
        if detection.words
    ]
    head = ["", *(row.model for row in rows)]
    return "\n".join([markdown_table(head, cells), "What it said:\n", *words])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench/health.json"))
@click.option("--only", help="One model; the page stays as it is.")
def health(out: Path, only: str | None) -> None:
    """Learn envelopes, count false alarms, and time the alarms of faults."""
    rows = [_row(*each) for each in _models() if only in (None, each[0])]
    write_whole(out, canonical_json(rows))
    text = table(rows)
    click.echo(text)
    if only is None:
        write_whole(PAGE, filled(PAGE.read_text(), {"health": text}).encode())
