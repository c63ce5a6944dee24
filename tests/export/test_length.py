"""How long writes are deferred, where a measurement or the bytes decide."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stategate
from stategate.contract import Bundle
from stategate.contract.errors import ExportError, SpecError
from stategate.export.seal import length
from stategate.export.seal.length import choose_length
from stategate.models.memories.matrix import Ring
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.zoo.makers import GDN2
from stategate.runtime.trust.code import code_digest


def no_trial(length: int | None) -> Bundle:
    raise AssertionError(f"nothing is measured, and not {length}")


def ring(width: int) -> Ring:
    return Ring("ring", 4, width, width, {"S": width})


def test_narrow_heads_are_never_deferred_by_themselves() -> None:
    turn, why = choose_length("auto", (ring(64),), no_trial)
    assert turn is None and "narrower than 128" in why


@pytest.mark.parametrize(("width", "expected"), [(8, 8), (64, 16), (128, 32), (256, 64)])
def test_the_fewest_bytes_are_of_the_longest_turn_whose_ring_is_no_larger_than_the_matrix(
    width: int, expected: int
) -> None:
    turn, why = choose_length("fewest-bytes", (ring(width),), no_trial)
    assert turn == expected
    nbytes = (4 * 4 * 3 * width * (expected - 1) + 4 * 4 * width * width) / expected
    assert f"{nbytes:,.0f} bytes a write" in why


def test_heads_whose_row_is_more_than_their_matrix_stay_plain() -> None:
    length, why = choose_length("fewest-bytes", (ring(2),), no_trial)
    assert length is None and "plain 64 bytes a write, a fold in 8 writes 92 bytes" in why


def test_what_is_measured_is_refused_where_the_same_bytes_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with pytest.raises(ExportError, match="--defer auto is measured"):
        choose_length("auto", (ring(128),), no_trial)


def test_another_word_is_no_length(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="auto or fewest-bytes"):
        stategate.make("gated-deltanet2", tmp_path / "b", defer="often")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_choice_stands_in_the_manifest_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted, scratch = tmp_path / "accepted", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("STATEGATE_TRUST", str(accepted))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    torch.manual_seed(0)
    monkeypatch.setattr(length, "_NARROW", 8)  # wide heads take minutes
    monkeypatch.setattr(length, "_TRIED", (8,))
    layer = replace(GDN2, width=16, key_dim=8, value_dim=8)
    model = Stack(StackConfig(4, 2, layers=1, mlp=None, layer=layer, threshold=0.0))
    bundle = stategate.make(
        model, tmp_path / "b", defer="auto", steps=64, engines="onnxruntime,native"
    )
    why = bundle.manifest.metadata["deferral"]
    assert why.count("us a step") == 2
    rows = [state.rows for state in bundle.manifest.states if state.cursor is not None]
    assert why.startswith(f"auto, a fold in {rows[0] + 1} writes" if rows else "auto, plain")
    assert [line.split()[0] for line in accepted.read_text().splitlines()] == [
        code_digest(bundle.manifest)
    ]
    assert not list(scratch.glob("*stategate*"))
    assert {each.name for each in tmp_path.iterdir()} == {"accepted", "scratch", "b"}
    accepted.unlink()
    stategate.fits("aura-hard", engine="native")
    assert not accepted.exists()
