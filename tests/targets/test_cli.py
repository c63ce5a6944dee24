from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stategate.cli.main import main
from stategate.contract.errors import MissingDependencyError
from stategate.targets import names, toml_tables

ROOT = Path(__file__).parents[2]


def stategate(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_table_lists_every_device_and_calls_the_unknown_by_its_name() -> None:
    lines = stategate("targets").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == names()
    assert "unknown" in next(line for line in lines if line.startswith("cortex-m7"))


def test_the_table_in_the_manual_is_the_one_that_is_printed() -> None:
    page = (ROOT / "docs" / "guides" / "targets.md").read_text()
    table = page.split("<!-- table: stategate targets --markdown -->")[1]
    assert table.split("<!-- end of table -->")[0].strip() == (
        stategate("targets", "--markdown").stdout.strip()
    )


def test_json_gives_every_figure_with_its_source_and_null_for_the_unknown() -> None:
    found = {p["name"]: p for p in json.loads(stategate("targets", "--json").stdout)}
    assert set(found) == set(names())
    reserve = found["jetson-nano"]["system_reserve_bytes"]
    assert reserve["value"] is None
    assert reserve["source"]
    assert reserve["date"] == "2026-11-22"


def test_show_prints_figures_sources_and_the_ladder() -> None:
    text = stategate("targets", "show", "jetson-orin-nano-8gb").stdout
    assert "8,589,934,592" in text
    assert "DS-11105-001" in text
    assert "JetPack 6.2: L4T 36.4.3, CUDA 12.6, TensorRT 10.3, Python 3.10" in text
    assert json.loads(stategate("targets", "show", "cortex-m7", "--json").stdout)["machine"]


def test_every_figure_of_every_device_can_be_shown() -> None:
    for name in names():
        assert stategate("targets", "show", name).exit_code == 0, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("targets", "show", "jetson-orin-nano-8g"), "jetson-orin-nano-8gb"),
        (("targets", "show", "../media/nvme-1tb"), "unknown target"),
        (("targets", "list"), "No such command"),
        (("targets", "show"), "Missing argument"),
        (("detect", "--root", "/nowhere"), "no such root"),
    ],
)
def test_wrong_use_is_reported(arguments: tuple[str, ...], said: str) -> None:
    result = stategate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_detect_says_what_it_could_not_tell(tmp_path: Path) -> None:
    text = stategate("detect", "--root", str(tmp_path)).stdout
    assert "could not tell memory_bytes: " in text
    assert "could not tell target: no profile is for this machine" in text


def test_detect_names_the_target_of_a_board(tmp_path: Path) -> None:
    tree = tmp_path / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_text("nvidia,p3768-0000+p3767-0001\0nvidia,tegra234\0")
    found = json.loads(stategate("detect", "--root", str(tmp_path), "--json").stdout)
    assert found["target"] == "jetson-orin-nx-8gb"
    assert found["soc"] == "nvidia,tegra234"


def test_detect_works_where_no_profile_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise MissingDependencyError("tomli", "export")

    monkeypatch.setattr(toml_tables, "_loads", lacking)
    assert json.loads(stategate("detect", "--json").stdout)["cores"]
    assert 'pip install "stategate[export]"' in stategate("targets").stderr
