"""What is said of a bundle: verified only within its limits, on inputs that are named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from stategate.cli.main import main
from stategate.contract import Bundle, Episode, FileRef, sha256, write_bundle
from stategate.contract.errors import ParityError
from stategate.runtime.check.golden import replay

CASES = Path(__file__).parents[1] / "cases"
F = TensorProto.FLOAT


PICKY = """
import torch
from torch import nn
from stategate.models import lift


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 2)
        self.register_buffer("h", torch.zeros(1, 2))

    def forward(self, word):
        self.h = 0.5 * self.h + self.table(word)
        return torch.tanh(self.h)


def make():
    word = torch.zeros(1, dtype=torch.int64)
    return lift(Picky(), {"word": word}, states=["h"], outputs=["y"])
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def recorded(path: Path, **inputs: np.ndarray) -> Path:
    path.write_bytes(Episode(inputs).to_bytes())
    return path


def onnx_file(path: Path, nodes: list, inputs: list, outputs: list, constants: dict) -> Path:
    """A small graph; ``constants`` are float32 numbers by name."""
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [onnx.numpy_helper.from_array(np.float32(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """h' = 8 h + |x|: overflows after some forty steps, whatever it is given."""
    return onnx_file(
        tmp_path / "growing.onnx",
        [
            ("Abs", ["x"], ["size"]),
            ("Mul", ["h", "eight"], ["more"]),
            ("Add", ["more", "size"], ["h_next"]),
            ("Tanh", ["h_next"], ["y"]),
        ],
        [("x", F, [1, 2]), ("h", F, [1, 2])],
        [("y", F, [1, 2]), ("h_next", F, [1, 2])],
        {"eight": 8.0},
    )


@pytest.mark.case("A2", "B9")
def test_a_model_that_answers_with_nan_is_refused_with_the_count_and_a_remedy_that_works(
    tmp_path: Path,
) -> None:
    words = ["export", f"{CASES}/models.py:nan_golden", "--steps", 200, "--out", tmp_path / "b"]
    done = run(*words)
    below_zero = np.random.default_rng(0).standard_normal((200, 1, 2)).astype(np.float32) < 0
    count = int(below_zero.any(axis=(1, 2)).sum())
    assert done.exit_code == 1 and not (tmp_path / "b").exists()
    assert f"output 'action' in {count} of 200 steps, first in step" in done.output
    assert "verified" not in done.output and "--range x=0:1" in done.output
    assert "reset()" not in done.output
    done = run(*words, "--range", "x=0.001:1")
    assert done.exit_code == 0, done.output
    assert "verified over 200 steps of declared ranges x=0.001:1 against" in done.output
    assert "noise" not in done.output


@pytest.mark.case("A2")
def test_a_recording_is_not_blamed_on_noise(tmp_path: Path) -> None:
    x = -np.ones((5, 1, 2), np.float32)
    model, log = f"{CASES}/models.py:nan_golden", recorded(tmp_path / "log.npz", x=x)
    done = run("export", model, "--episode", log, "--steps", 5, "--out", tmp_path / "b")
    assert done.exit_code == 1 and "on recording log.npz: x from -1 to -1" in done.output
    assert "--episode" not in done.output.partition("what to do")[2]


@pytest.mark.case("A2")
def test_a_state_that_overflows_in_an_adopted_file_is_counted_as_an_output_is(
    growing: Path, tmp_path: Path
) -> None:
    words = ["adopt", growing, "--state", "h=h_next", "--out", tmp_path / "b"]
    done = run(*words, "--steps", 100)
    assert done.exit_code == 1 and "state 'h' in" in done.output and "reset()" not in done.output
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.case("B9")
def test_measuring_the_native_engine_takes_no_step_that_was_not_checked(
    growing: Path, tmp_path: Path
) -> None:
    words = ["adopt", growing, "--state", "h=h_next", "--engines", "onnxruntime,native"]
    done = run(*words, "--steps", 30, "--out", tmp_path / "b")
    assert done.exit_code == 0, done.output
    native = Bundle.open(tmp_path / "b").manifest.native
    assert native is not None and set(native.step_us) == {"native", "onnxruntime"}


@pytest.mark.case("B9")
def test_a_memory_that_overflows_in_a_command_is_not_advised_to_go_on(
    growing: Path, tmp_path: Path
) -> None:
    words = ["adopt", growing, "--state", "h=h_next", "--out", tmp_path / "b"]
    assert run(*words, "--steps", 30).exit_code == 0
    done = run("run", tmp_path / "b", "--steps", "200")
    told = done.output
    assert done.exit_code == 1 and "the next state 'h' holds NaN or Inf" in told
    assert "reset()" not in told and "with more --steps" in told
    again = run(*words, "--steps", 100)  # what the remedy says
    assert again.exit_code == 1 and "first in step" in again.output


@pytest.mark.case("B9")
def test_a_module_that_raises_on_an_input_of_the_check_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    model, out = f"{tmp_path}/picky.py:make", tmp_path / "b"
    done = run("export", model, "--range", "word=0:9", "--steps", 50, "--out", out)
    assert done.exit_code == 1 and "fails on the inputs of step" in done.output
    assert "IndexError" in done.output and "word from 0 to 9" in done.output
    assert run("export", model, "--steps", 50, "--out", out).exit_code == 0
    golden = Bundle.open(out).golden()
    assert golden is not None and set(golden.inputs["word"].ravel().tolist()) == {0, 1, 2, 3}


@pytest.mark.case("B9")
def test_fits_of_a_model_that_noise_makes_nan_says_how_to_look_at_it(tmp_path: Path) -> None:
    done = run("fits", f"{CASES}/models.py:nan_golden")
    assert done.exit_code == 1 and "stategate export" in done.output
    assert "--range" not in done.output


@pytest.mark.case("A2")
def test_an_old_bundle_whose_golden_answers_are_nan_does_not_verify(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    old = Bundle.open(tiny_bundle)
    golden = old.golden()
    assert golden is not None and old.manifest.golden is not None
    golden.outputs["y"][3] = np.nan
    files = {f.path: old.read(f) for f in old.manifest.all_files}
    files[old.manifest.golden] = golden.to_bytes()
    refs = tuple(FileRef(f.path, sha256(files[f.path])) for f in old.manifest.files)
    manifest = msgspec.structs.replace(old.manifest, files=refs)
    bundle = write_bundle(tmp_path / "old", manifest, files).path
    with pytest.raises(ParityError, match="promises NaN or Inf"):
        replay(bundle)
    done = run("verify", bundle)
    assert done.exit_code == 1 and "passed" not in done.output and "in y" in done.output


@pytest.mark.case("B9")
def test_a_candidate_that_overflows_names_the_remedy_of_the_export(tmp_path: Path) -> None:
    source = (Path(__file__).parents[1] / "conftest.py").read_text()
    model = tmp_path / "large.py"
    model.write_text(source.replace('states["count"] + 1.0', 'states["count"] + 9e3'))
    words = ["export", f"{model}:Tiny", "--steps", 20, "--out", tmp_path / "b"]
    done = run(*words, "--state-storage", "count=float16")
    assert done.exit_code == 1 and "the bundle fails in step" in done.output
    assert "in lower precision keep more of it in float" in done.output
    assert "reset()" not in done.output and not (tmp_path / "b").exists()


@pytest.mark.case("D4")
def test_a_candidate_is_not_called_verified_by_export_inspect_or_verify(tmp_path: Path) -> None:
    out = tmp_path / "b"
    done = run(
        "export", f"{CASES}/models.py:leaky", "--precision", "int8-weights", "--steps", 50,
        "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for text in (done.output, run("inspect", out).output, run("verify", out).output):
        assert "candidate" in text and "verified" not in text
    assert Bundle.open(out).manifest.standing == "candidate"


@pytest.mark.slow
@pytest.mark.case("D11")
@pytest.mark.parametrize(
    ("words", "name", "state_bytes"),
    [
        (["--precision", "int8-weights"], "int8-weights", 1024),
        (["--state-storage", "s=float16"], "float32-weights float16-states (own plan)", 512),
    ],
)
def test_inspect_says_what_lower_precision_saved_and_what_drift_found(
    tmp_path: Path, words: list[str], name: str, state_bytes: int
) -> None:
    common = ["export", f"{CASES}/models.py:leaky", "--steps", 20]
    assert run(*common, "--out", tmp_path / "float").exit_code == 0
    done = run(*common, *words, "--out", tmp_path / "small")
    assert done.exit_code == 0, done.output
    sizes = [(tmp_path / b / "graphs" / "step.onnx").stat().st_size for b in ("float", "small")]
    line = (
        f"{name}: graph {sizes[0]:,} -> {sizes[1]:,} bytes, memory 1,024 -> {state_bytes:,} bytes"
    )
    assert line in done.output
    inspected = run("inspect", tmp_path / "small").output
    assert f"precision    {line}\n" in inspected and "drift        not judged" in inspected
    assert "precision  " not in run("inspect", tmp_path / "float").output
    log = recorded(tmp_path / "log.npz", x=np.ones((30, 1, 8), np.float32))
    judged = run(
        "drift", tmp_path / "float", tmp_path / "small", "--episode", log, "--out", tmp_path / "r",
        "--seal", tmp_path / "sealed", "--max-mean-error", 0.5,
    )  # fmt: skip
    assert judged.exit_code == 0, judged.output
    inspected = run("inspect", tmp_path / "sealed").output
    assert f"precision    {line}\n" in inspected
    assert "verified     " in inspected and "30 steps beside the float model: passed" in inspected


@pytest.mark.case("D4")
def test_what_was_accepted_beyond_its_limits_is_refused_and_says_by_whom(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    receipt = bundle.manifest.verification
    assert receipt is not None and bundle.manifest.standing == "sealed"
    receipt = msgspec.structs.replace(receipt, accepted="Ada: a toy (overruled: error 1.1)")
    manifest = msgspec.structs.replace(bundle.manifest, verification=receipt)
    assert (manifest.standing, manifest.verdict) == ("refused", "refused")
    files = {f.path: bundle.read(f) for f in manifest.all_files}
    write_bundle(tmp_path / "b", manifest, files)
    for verb in ("inspect", "verify"):
        text = run(verb, tmp_path / "b").output
        assert "refused" in text and "by Ada: a toy" in text and "verified" not in text


@pytest.mark.case("D2")
@pytest.mark.parametrize(
    ("how", "says", "is_noise"),
    [
        ([], "steps of noise in x against", True),
        (["--range", "x=-1:1"], "steps of declared ranges x=-1:1 against", False),
        (["--episode"], "steps of recording log.npz against", False),
    ],
)
def test_the_receipt_says_what_the_inputs_were_and_calls_noise_noise(
    tmp_path: Path, how: list[str], says: str, is_noise: bool
) -> None:
    log = recorded(tmp_path / "log.npz", x=np.ones((9, 1, 8), np.float32))
    how = [*how, str(log)] if how == ["--episode"] else how
    out = tmp_path / "b"
    done = run("export", f"{CASES}/models.py:leaky", "--steps", 20, *how, "--out", out)
    assert done.exit_code == 0, done.output
    for text in (done.output, run("inspect", out).output, run("verify", out).output):
        assert says in text
        assert ("noise says nothing about real inputs" in text) == is_noise


@pytest.mark.case("B9")
@pytest.mark.parametrize("words", ["x", "x=1", "x=2:1", "x=nan:1", "x=0:1=2", "y=0:1", "x=0:1e39"])
def test_a_range_that_says_nothing_is_wrong_use(tmp_path: Path, words: str) -> None:
    model = f"{CASES}/models.py:leaky"
    done = run("export", model, "--range", words, "--steps", 5, "--out", tmp_path / "b")
    assert done.exit_code == 2 and "range" in done.output and not (tmp_path / "b").exists()
