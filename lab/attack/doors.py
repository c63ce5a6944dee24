"""Every place where a file of a stranger comes in, with what must be so of what was read.

A door takes the bytes of one file. It reads them as a user's command would, and compares what came
out with another reader, or with the bytes themselves. What is refused must be refused by an error
of stategate that says what was found.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import safetensors.numpy
import yaml

from lab.attack import mutate
from lab.attack.around import Broken, empty_folder, watch
from lab.attack.places import BUNDLE, PLACE, SLOT, observation
from stategate.contract import Bundle, Episode, StateSpec, StepSpec, TensorSpec
from stategate.contract.bundle import MANIFEST, SEAL
from stategate.contract.calibration import CalibrationRecord
from stategate.contract.episodes import EpisodeFile
from stategate.contract.errors import StategateError
from stategate.contract.manifest import decode_manifest
from stategate.contract.npz import load_npy
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.contract.reading import text_with_controls
from stategate.contract.records import canonical_json
from stategate.contract.state_file import load_states
from stategate.export.frontends.adopt import adopt as adopt_file
from stategate.export.frontends.declared import Request
from stategate.export.frontends.leapp import read_export
from stategate.export.frontends.observation import observation_of
from stategate.export.frontends.untrusted import load_graph
from stategate.export.frontends.yaml_file import load_yaml
from stategate.runtime import Session, SnapshotPolicy
from stategate.runtime.check.replay import replay
from stategate.runtime.episodes.wav import wav_episode
from stategate.runtime.keep.account import RECORD_BYTES, Account
from stategate.runtime.keep.snapshot import Codec
from stategate.targets.profile import TargetProfile
from stategate.targets.toml_tables import parse_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Read: TypeAlias = Callable[[bytes, Path], None]


@dataclass(frozen=True, slots=True)
class Door:
    """One way in.

    Attributes:
        read: Reads the bytes of a file, and may use an empty folder; raises `Broken` where what it
            read is wrong.
        mutate: Makes wrong files.
        most_bytes: Of a file.
    """

    read: Read
    mutate: mutate.Mutator = mutate.plain
    most_bytes: int = 1 << 14


def _must(is_so: bool, what: str) -> None:
    if not is_so:
        raise Broken(what)


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def _says(record: Any, text: Any) -> bool:
    """Whether a record says all that its text does, numbers of whatever type."""
    if isinstance(text, dict):
        return isinstance(record, dict) and all(
            key in record and _says(record[key], inner) for key, inner in text.items()
        )
    if isinstance(text, list):
        same = isinstance(record, list | tuple) and len(record) == len(text)
        return same and all(map(_says, record, text))
    return bool(record == (float(text) if isinstance(record, float) else text))


@cache
def _bundle() -> Bundle:
    return Bundle.open(BUNDLE)


@cache
def _corpus(door: str) -> bytes:
    return (PLACE / "corpus" / door / "small").read_bytes()


def _put(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def _manifest(raw: bytes, _: Path) -> None:
    record = decode_manifest(raw)
    again = canonical_json(record)
    _must(canonical_json(decode_manifest(again)) == again, "a manifest is not its own copy")
    text = json.loads(raw)
    text.pop("schema_version")
    for state in (s for s in text["states"] if s.get("bytes") == 0):
        del state["bytes"]  # as good as not given
    _must(_says(json.loads(again), text), "the manifest says something else than its text")


def _session(raw: bytes, folder: Path) -> None:
    """A manifest under its own seal, with the files that it wants: opened and stepped."""
    path = folder / "bundle"
    shutil.copytree(BUNDLE, path)
    _put(path, MANIFEST, raw)
    _put(path, SEAL, f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n".encode())
    bundle = Bundle.open(path)
    bundle.golden()
    with Session.open(path, snapshots=folder / "memory") as session:
        spec = session.manifest.step
        inputs = {t.name: np.zeros(t.shape, t.dtype) for t in spec.inputs}
        outputs = session.step(**inputs)
        for tensor in spec.outputs:
            like = (outputs[tensor.name].shape, str(outputs[tensor.name].dtype))
            _must(like == (tensor.shape, tensor.dtype), "an output is not as its manifest says")
        session.save()
        _must(session.restore() is not None, "a snapshot does not come back")


def _snapshot(raw: bytes, _: Path) -> None:
    codec = Codec(_bundle().manifest)
    snapshot = codec.decode(raw, SLOT)
    payload = b"".join(array.tobytes() for array in snapshot.states.values())
    _must(raw[-32 - len(payload) : -32] == payload, "the states are not the file's")
    _must(all(np.isfinite(a).all() for a in snapshot.states.values()), "a state is no number")
    ledger = msgspec.to_builtins(snapshot.header.ledger)
    numbers = [n for n in ledger.values() if isinstance(n, int | float)]
    _must(all(n >= 0 and math.isfinite(n) for n in numbers), "a counter below zero")
    text = json.loads(raw[24 : 24 + int.from_bytes(raw[12:16], "little")])
    _must(_says(msgspec.to_builtins(snapshot.header), text), "the header says something else")
    if raw != _corpus("snapshot"):
        sealed = hashlib.sha256(raw[:-32]).digest() == raw[-32:]
        _must(sealed, "a snapshot of another checksum was taken")


def _restored(folder: Path, policy: SnapshotPolicy) -> tuple[Session, bytes | None]:
    session = Session.open(BUNDLE, snapshots=policy)
    with session:
        restored = session.restore()
        states = [session.state(s.name) for s in session.manifest.states]
        _must(all(np.isfinite(a).all() for a in states), "a state that was taken is no number")
        session.step(x=observation(0))
    return session, None if restored is None else b"".join(a.tobytes() for a in states)


@cache
def _commits() -> frozenset[bytes | None]:
    """States that the journal of the corpus, cut after any block, leads to."""
    raw, committed = _corpus("journal"), set()
    for blocks in range(17):
        with empty_folder() as folder:
            cut = raw[: 4096 * (1 + blocks)].ljust(len(raw), b"\0")
            committed.add(_with_journal(cut, folder))
    return frozenset(committed)


def _with_journal(raw: bytes, folder: Path) -> bytes | None:
    _put(folder, SLOT, _corpus("snapshot"))
    _put(folder, "journal", raw)
    return _restored(folder, SnapshotPolicy(folder, journal=True))[1]


def _journal(raw: bytes, folder: Path) -> None:
    committed = _commits()
    states = _with_journal(raw, folder)
    own = {_corpus("journal")[at : at + 4096] for at in range(0, len(_corpus("journal")), 4096)}
    blocks = {raw[at : at + 4096] for at in range(0, len(raw), 4096)}
    forged = mutate.right_blocks(raw) == raw and not blocks <= own
    _must(forged or states in committed, "a journal gave states that were never committed")


def _account(raw: bytes, folder: Path) -> None:
    _put(folder, "account", raw)
    record = Account(folder).record
    balance = () if record is None else (record.persist_bytes, record.writes_by_steps)
    _must(all(n is None or n >= 0 for n in balance), "an account gives less than nothing")
    halves = (raw[:RECORD_BYTES], raw[RECORD_BYTES : 2 * RECORD_BYTES])
    good = [hashlib.sha256(h[:-32]).digest() == h[-32:] for h in halves]
    if raw and not any(good):
        _must(record is not None and not any(balance), "a damaged account has something left")


def _black_box(raw: bytes, folder: Path) -> None:
    report = replay(_put(folder, "box", raw), _bundle())
    if raw == _corpus("black-box"):
        _must(report.passed and report.steps == 10, "a recording does not replay")


def _safetensors(raw: bytes, folder: Path) -> None:
    arrays, facts = load_states(_put(folder, "states.safetensors", raw))
    others = safetensors.numpy.load(raw)
    _must(set(arrays) == set(others), "other tensors than safetensors finds")
    _must(all(_same(a, others[n]) for n, a in arrays.items()), "other numbers than safetensors")
    _must(all(isinstance(text, str) for text in facts.values()), "a fact that is no text")


def _npz(raw: bytes, _: Path) -> None:
    episode = Episode.load(raw)
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        for part in ("input", "label", "output", "gate", "state", "trail", "start", "prologue"):
            for name, array in getattr(episode, part + ("s" * (part not in _SINGULAR))).items():
                _must(_same(array, file[f"{part}.{name}"]), "other numbers than NumPy reads")
    again = Episode.load(episode.to_bytes())
    _must(set(again.inputs) == set(episode.inputs), "an episode is not its own copy")
    list(zip(episode, range(3), strict=False))
    episode.check(_bundle().manifest.step, starts=True)


_SINGULAR = ("trail", "start", "prologue")


def _episode_file(raw: bytes, folder: Path) -> None:
    file = EpisodeFile.open(_put(folder, "episode.npz", raw))
    whole = file.load()
    blocks = list(file.blocks(starts=True))
    for name, array in whole.inputs.items():
        joined = np.concatenate([block.inputs[name] for block in blocks])
        _must(_same(joined, array), "blocks hold other numbers than the whole")


def _npy(raw: bytes, folder: Path) -> None:
    array = load_npy(_put(folder, "array.npy", raw))
    _must(_same(array, np.load(io.BytesIO(raw), allow_pickle=False)), "other numbers than NumPy")


def _wav(raw: bytes, folder: Path) -> None:
    episode = wav_episode(_put(folder, "sound.wav", raw), "x", window=8, hop=4)
    step = episode.inputs["x"][0, 0]
    _must(np.abs(step).max() <= 1.0, "a sample is louder than all there are")
    channels, width, sound = _riff(raw)
    frames = np.frombuffer(sound[: 8 * channels * width], f"<i{width}").reshape(-1, channels)
    same = np.array_equal(frames[:, 0] / 2.0 ** (8 * width - 1), step.astype(np.float64), True)
    _must(same or width == 4, "other samples than the file's")  # float32 rounds those of 32 bits


def _riff(raw: bytes) -> tuple[int, int, bytes]:
    """Channels, bytes of a sample, and the first chunk of samples."""
    at, channels, width = 12, 0, 0
    while at + 8 <= len(raw):
        name, size = raw[at : at + 4], int.from_bytes(raw[at + 4 : at + 8], "little")
        body = raw[at + 8 : at + 8 + size]
        if name == b"fmt ":
            channels = int.from_bytes(body[2:4], "little")
            width = (int.from_bytes(body[14:16], "little") + 7) // 8
        elif name == b"data":
            return channels, width, body
        at += 8 + size + size % 2
    raise Broken("sound was read out of a file without samples")


def _yaml(raw: bytes, folder: Path) -> None:
    """Its own reader of YAML, whose callers refuse whatever it raises."""
    try:
        plain = load_yaml(_put(folder, "x.yaml", raw))
    except Exception as problem:
        raise StategateError("refused", found=f"{type(problem).__name__}: {problem}") from problem
    try:
        other = yaml.safe_load(raw)
    except Exception:  # a tag of Python, which is taken as what is written
        return
    _must(repr(plain) == repr(other), "other values than PyYAML")


def _leapp(raw: bytes, folder: Path) -> None:
    _put(folder, "n.onnx", b"")
    read_export(_put(folder, "x.yaml", raw))


def _observes(raw: bytes, folder: Path) -> None:
    tensors = (TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 2)),)
    spec = StepSpec(*tensors, (StateSpec("h", (1, 2)),))
    contract = observation_of({}, spec, observes=_put(folder, "x.yaml", raw))
    if contract is not None:
        again = msgspec.convert(msgspec.to_builtins(contract), type(contract))
        _must(again == contract, "a contract is not its own copy")


_REQUEST = Request(dims={}, shapes={}, constants={}, states={})


def _onnx(raw: bytes, folder: Path) -> None:
    graph, model = load_graph(_put(folder, "x.onnx", raw))
    _must(graph == raw or bool(model.graph.initializer), "other bytes than the file's")


def _adopt(raw: bytes, folder: Path) -> None:
    adopted = adopt_file(_put(folder, "x.onnx", raw), _REQUEST)
    _must(bool(adopted.candidate.spec.states), "adopted without a state")


def _toml(raw: bytes, _: Path) -> None:
    profile = parse_toml(raw, "x.toml", "the target x", TargetProfile)
    plain = tomllib.loads(raw.decode())
    _must(profile.name == plain["name"], "a target of another name")


_RECORDS: tuple[Callable[[Path], object], ...] = (
    CalibrationRecord.load,
    RangeRecord.load,
    PrecisionPlan.named,
)


def _record(raw: bytes, folder: Path) -> None:
    load = _RECORDS[(raw[0] if raw else 0) % len(_RECORDS)]
    record = load(_put(folder, "x.json", raw[1:]))
    _must(_says(msgspec.to_builtins(record), json.loads(raw[1:])), "a record says something else")


def _json_after_a_byte(raw: bytes, rng: Any, change: mutate.Bytes) -> bytes:
    first = raw[:1] if rng.random() < 0.8 else bytes([rng.randrange(len(_RECORDS))])
    return first + mutate.json_text(raw[1:], rng, change)


DOORS: dict[str, Door] = {
    "manifest": Door(_manifest, mutate.json_text),
    "session": Door(_session, mutate.json_text),
    "snapshot": Door(_snapshot, mutate.snapshot),
    "journal": Door(_journal, mutate.records, 1 << 17),
    "account": Door(_account, mutate.account),
    "black-box": Door(_black_box, mutate.records, 1 << 16),
    "npz": Door(_npz, mutate.npz),
    "episode-file": Door(_episode_file, mutate.npz),
    "npy": Door(_npy, mutate.npy),
    "wav": Door(_wav, mutate.wav),
    "safetensors": Door(_safetensors, mutate.safetensors),
    "yaml": Door(_yaml, mutate.yaml_text, 1 << 12),
    "leapp": Door(_leapp, mutate.yaml_text, 1 << 12),
    "observes": Door(_observes, mutate.yaml_text, 1 << 12),
    "onnx": Door(_onnx, mutate.proto),
    "adopt": Door(_adopt, mutate.proto),
    "toml": Door(_toml),
    "record": Door(_record, _json_after_a_byte),
}


def knock(name: str, raw: bytes) -> str:
    """Hand the bytes of a file to a door.

    Returns:
        ``read`` or ``refused``.

    Raises:
        Broken: It did something else than to read it rightly or to refuse it in words.
        Exception: It let something through.
    """
    door, watching = DOORS[name], watch()
    if name == "journal":
        _commits()
    with empty_folder() as folder:
        watching.folder = str(folder)
        try:
            door.read(raw, folder)
            answer = "read"
        except StategateError as problem:
            _check_refusal(problem)
            answer = "refused"
        finally:
            watching.folder = None
        events, watching.events = watching.events, []
    _must(not events, f"it did something outside of its folder: {'; '.join(events)}")
    return answer


def _check_refusal(problem: StategateError) -> None:
    text = str(problem)
    parts = ("\n  found: ", "\n  expected: ", "\n  what to do: ")
    _must(any(part in text for part in parts), f"a refusal without what was found: {text}")
    _must(len(text) < 1 << 16, "a refusal of more than 64 KiB")
    _must(text_with_controls(text.replace("\n", "")) is None, f"a refusal that obeys: {text!r}")
    cause: BaseException | None = problem
    while cause is not None:
        _must(not isinstance(cause, MemoryError), "it asked for the memory of no small file")
        cause = cause.__cause__
