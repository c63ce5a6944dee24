"""The small right files that the fuzzers begin with, each written by our own code."""

from __future__ import annotations

import io
import shutil
import warnings
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import onnx
import torch
import yaml
from torch import nn

from lab.attack.places import BUDGET, BUNDLE, PLACE, RING_BLOCKS, ROOT, SLOT, SOUND_HZ, observation
from stategate.contract import Bundle, Episode, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.bundle import sha256
from stategate.contract.calibration import CalibrationRecord, GateCalibration
from stategate.contract.precision import PRESETS, RangeRecord
from stategate.contract.records import canonical_json
from stategate.contract.state_file import encode_states
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.inputs import random_episode
from stategate.export.seal.pack import seal
from stategate.models.load import LoadedModel
from stategate.models.step import StepResult, Tensors
from stategate.runtime import BlackBox, Session, SnapshotPolicy
from stategate.runtime.keep import journal as journals
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import look_into


class Small(nn.Module):
    """A gated memory, and a counter that no gate guards."""

    def step_spec(self) -> StepSpec:
        """One input, one output, two states, one gate."""
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 2)),),
            (StateSpec("h", (1, 2), gate="gate"), StateSpec("count", (1, 1))),
            (GateSpec("gate", "hard", (1, 1), 0.0, "threshold"),),
        )

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """A leaky mean, held where the first input is not positive."""
        x, gate = inputs["x"], inputs["x"][:, :1]
        h = torch.where(gate > inputs["threshold"], 0.5 * states["h"] + x, states["h"])
        return StepResult({"y": 2.0 * h}, {"h": h, "count": states["count"] + 1.0}, {"gate": gate})


def sealed(path: Path, model: Any, sessions: int = 1) -> Bundle:
    """A sealed bundle of a model without C."""
    loaded = LoadedModel("small", "custom", "lab", model, model, None)
    candidate = candidate_from(loaded, sessions, "portable")
    reference = reference_for(model, candidate)
    return seal(path, candidate, reference, random_episode(candidate.spec, 8))


def small_ring() -> Callable[..., object]:
    """Within it, journals have the fewest blocks."""
    return patch.object(journals, "_MOST_BLOCKS", RING_BLOCKS)


def _memory(scratch: Path) -> dict[str, bytes]:
    """A snapshot, a journal that goes on from it, and the account of both."""
    folder = scratch / "folder"
    with small_ring(), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.simplefilter("ignore")
        policy = SnapshotPolicy(folder, journal=True)
        with Session.open(BUNDLE, snapshots=policy, budget=BUDGET) as session:
            session.step(x=observation(0))
            session.save()
            for t in range(1, 9):
                session.step(x=observation(t))
            shutil.copytree(folder, scratch / "killed")
    files = {path.name: path.read_bytes() for path in (scratch / "killed").iterdir()}
    newest = look_into(scratch / "killed", Codec(Bundle.open(BUNDLE).manifest)).newest
    assert newest is not None
    return {**files, SLOT: files[newest.slot]}


def _black_box(scratch: Path) -> bytes:
    path = scratch / "box"
    box = BlackBox(path, file_bytes=9 << 12)
    with Session.open(BUNDLE, black_box=box) as session:
        for t in range(5):
            session.step(x=observation(t))
        session.reset()
        for t in range(5):
            session.step(x=observation(t))
    return path.read_bytes()


def _sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(SOUND_HZ)
        sound.writeframes((1000 * np.sin(np.arange(64))).astype("<i2").tobytes())
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _graph() -> bytes:
    """A graph whose state is an input and an output, with weights, and words of its maker."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 2] x, float[1, 2] h) => (float[1, 2] y, float[1, 2] h_next)
        <float[2, 2] w = {0.5, 0.1, 0.2, 0.3}>
        {
            seen = MatMul(h, w)
            h_next = Add(seen, x)
            y = Tanh(h_next)
        }
    """
    model = onnx.parser.parse_model(text)
    onnx.helper.set_model_props(model, {"observation_names": "a,b", "policy_dt": "0.02"})
    return bytes(model.SerializeToString())


def _yaml(record: dict[str, Any]) -> bytes:
    return str(yaml.safe_dump(record)).encode()


def _leapp() -> bytes:
    tensor = {"dtype": "float32", "shape": [1, 2]}
    node = {
        "parameters": {"backend": "onnx", "model_path": "n.onnx", "sha256sum": sha256(b"")},
        "inputs": [{"name": "x", **tensor}, {"name": "h", **tensor}],
        "outputs": [{"name": "y", **tensor}, {"name": "h_next", **tensor}],
    }
    pipeline = {
        "inputs": {"n": ["x"]},
        "outputs": {"n": ["y"]},
        "feedback_flow": {"n/h_next": ["n/h"]},
        "configs": {"frequency": 50.0},
    }
    return _yaml(
        {
            "models": {"n": node},
            "pipeline": pipeline,
            "system information": {"leapp version": "0.7"},
        }
    )


def _observes() -> bytes:
    return _yaml({"inputs": {"x": {"elements": ["a", "b"], "scale": [2.0]}}, "rate_hz": 50.0})


def seeds(scratch: Path) -> dict[str, dict[str, bytes]]:
    """Content of every corpus file, by door and name; the bundle is there already."""
    bundle = Bundle.open(BUNDLE)
    manifest = (BUNDLE / "manifest.json").read_bytes()
    golden = bundle.golden()
    assert golden is not None
    files = _memory(scratch)
    states = {"h": np.array([[0.5, -1.0]], np.float32), "count": np.zeros((1, 1), np.float32)}
    plain = Episode({"x": golden.inputs["x"][:3]}, {"y": np.array([0, 1, -1])}, rate_hz=50.0)
    compressed = io.BytesIO()
    save: Any = np.savez_compressed  # its stub reads the keywords of arrays as allow_pickle
    save(compressed, **{"input.x": np.zeros((3, 1, 2), np.float32)})
    profile = (ROOT / "targets/profiles/cpu-x86-64.toml").read_bytes()
    gates = (GateCalibration("gate", 0.5, 0.1, "by hand", ()),)
    calibration = CalibrationRecord("0" * 64, "one", 3, gates)
    ranges = RangeRecord("0" * 64, ("one",), 3, ())
    return {
        "manifest": {"small": manifest},
        "session": {"small": manifest},
        "snapshot": {"small": files[SLOT]},
        "journal": {"small": files["journal"]},
        "account": {"small": files["account"]},
        "black-box": {"small": _black_box(scratch)},
        "npz": {"golden": golden.to_bytes(), "labels": plain.to_bytes()},
        "episode-file": {"labels": plain.to_bytes(), "packed": compressed.getvalue()},
        "npy": {"small": _npy(np.arange(6.0).reshape(2, 3))},
        "wav": {"stereo": _sound()},
        "yaml": {"leapp": _leapp(), "observes": _observes()},
        "leapp": {"small": _leapp()},
        "observes": {"terms": _observes()},
        "safetensors": {"states": encode_states(states, {"a": "b"})},
        "onnx": {"graph": _graph(), "step": bundle.read(bundle.manifest.step_graph.file)},
        "adopt": {"graph": _graph()},
        "toml": {"profile": profile},
        "record": {  # the first byte says which
            "calibration": b"\0" + canonical_json(calibration),
            "ranges": b"\1" + canonical_json(ranges),
            "plan": b"\2" + canonical_json(PRESETS["int8"]),
        },
    }


@click.command()
def corpus() -> None:
    """Write the right files among the corpora of tests/fuzz anew; the wrong ones stay."""
    from stategate.contract.staging import scratch_folder

    if not BUNDLE.exists():
        sealed(BUNDLE, Small())
    with scratch_folder() as scratch:
        for door, files in seeds(scratch).items():
            for name, content in files.items():
                path = PLACE / "corpus" / door / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                click.echo(f"{path.relative_to(ROOT)}: {len(content):,} bytes")
