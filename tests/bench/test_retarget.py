from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stategate.cli.main import main
from stategate.contract import Bundle

ROOT = Path(__file__).parents[2]


def stategate(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_retargeted_bundle_is_the_same_for_another_device(
    aura_bundle: Path, tmp_path: Path
) -> None:
    result = stategate("retarget", aura_bundle, "--target", "raspberry-pi-5", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    before, after = Bundle.open(aura_bundle), Bundle.open(tmp_path / "aura-hard-float32")
    assert after.manifest.target is not None
    assert after.manifest.target.name == "raspberry-pi-5"
    assert after.manifest.all_files == before.manifest.all_files
    assert after.manifest.verification == before.manifest.verification
    report = json.loads((tmp_path / "report.json").read_text())
    assert [c["bundle"] for c in report["cells"]] == ["aura-hard-float32"]


def test_what_is_not_legal_is_refused_in_the_report_and_not_written(
    aura_bundle: Path, tmp_path: Path
) -> None:
    result = stategate("retarget", aura_bundle, "--target", "jetson-nano", "--out", tmp_path)
    assert result.exit_code == 1
    assert "Python 3.6" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("BUNDLE", "--target", "jetson-nanu"), "jetson-nano"),
        (("BUNDLE", "BUNDLE", "--target", "raspberry-pi-5"), "one folder"),
        (("/nowhere", "--target", "raspberry-pi-5"), "not a bundle"),
        (("--target", "raspberry-pi-5"), "Missing argument"),
    ],
)
def test_wrong_use_of_retarget_is_reported(
    aura_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    words = [str(aura_bundle) if word == "BUNDLE" else word for word in arguments]
    result = stategate("retarget", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
