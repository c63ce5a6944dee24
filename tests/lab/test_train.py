from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from lab.__main__ import main
from lab.training.recipes import TRAININGS
from stategate.models.zoo import checkpoint
from stategate.models.zoo.makers import gru_few


def test_train_writes_a_checkpoint_and_the_table_on_its_card(tmp_path: Path, monkeypatch) -> None:
    quick = replace(TRAININGS["gru-few"], horizons=((32, 2),))
    monkeypatch.setitem(TRAININGS, "gru-few", quick)
    out = tmp_path / "gru.safetensors"
    command = ["train", "gru-few", "--iterations", "2", "--seed", "7", "--out", str(out), "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    _, _, card = checkpoint.load(out, gru_few())
    assert card.command == "python -m lab train gru-few --seed 7 --iterations 2"
    assert [card.recipe[name] for name in ("seed", "iterations", "config")] == [7, 2, "few"]
    assert json.loads(done.stdout) == msgspec.to_builtins(list(card.table))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lstm"], "is not one of 'aura-hard', 'gdn2-hard', 'gru-few'"),
        (["gru-few", "--iterations", "0"], "0 is not in the range"),
        (["gru-few", "--out", "x.pt"], "suffix .safetensors"),
        (["gru-few", "--out", "/dev/null/x.safetensors"], "nothing can be written there"),
        (["gru-few", "--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_train_refuses_before_it_trains(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["train", *arguments])
    assert done.exit_code == 2 and message in done.output
