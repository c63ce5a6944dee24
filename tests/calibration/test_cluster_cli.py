"""The commands give on a cluster what they give in one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import distributed
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stategate.calibration.closed_loop import GateSample
from stategate.cli.main import main
from stategate.contract import Episode

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two workers in processes of their own, as on other machines."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    folder = tmp_path / "logs"
    folder.mkdir()
    for i in range(5):
        steps = 160 + 13 * i
        x = rng.normal(0.1 * i, 1 + i, (steps, 1, 4)).astype(np.float32)
        labels = {"y": rng.integers(-1, 4, steps)}
        (folder / f"{i}.npz").write_bytes(Episode({"x": x}, labels).to_bytes())
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_ranges_on_a_cluster_are_those_of_one_process_to_the_last_bit(
    tiny_bundle: Path, logs: Path, address: str, tmp_path: Path
) -> None:
    records = []
    for more in ([], ["--cluster", address]):
        out = tmp_path / "ranges.json"
        done = run("ranges", tiny_bundle, "--episode", logs, "--out", out, *more)
        assert done.exit_code == 0, done.output
        records.append(out.read_bytes())
    assert records[0] == records[1]
    assert json.loads(records[0])["steps"] == sum(160 + 13 * i for i in range(5))


@pytest.mark.slow
def test_a_calibration_on_a_cluster_is_that_of_one_process(
    logs: Path, address: str, tmp_path: Path
) -> None:
    source = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "mine.py").write_text(source.read_text())
    records = []
    for more in ([], ["--cluster", address]):
        out = tmp_path / "record.json"
        model = f"{tmp_path}/mine.py:Tiny"
        done = run(
            "calibrate", model, "--episode", logs, "--out", out, "--write-rate", "0.3", *more
        )
        assert done.exit_code == 0, done.output
        records.append(json.loads(out.read_text()))
    alone, together = records
    points = [record["gates"][0].pop("curve") for record in records]
    assert alone == together
    for a, b in zip(*points, strict=True):
        assert a.pop("output_error") == pytest.approx(b.pop("output_error"), rel=1e-6)
        assert a == b


@pytest.mark.slow
def test_a_cluster_of_this_machine_needs_no_address(
    tiny_bundle: Path, logs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ranges.json"
    done = run("ranges", tiny_bundle, "--episode", logs, "--out", out, "--cluster", "local")
    assert done.exit_code == 0, done.output
    assert out.exists()


@pytest.mark.slow
def test_what_a_cluster_cannot_do_is_refused(
    tiny_bundle: Path, logs: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = ["ranges", tiny_bundle, "--episode", logs, "--out", tmp_path / "r.json", "--cluster"]
    done = run(*ranges, "nonsense://nowhere")
    assert done.exit_code == 1 and "cannot be reached" in done.output
    done = run("calibrate", "aura-hard", "--cluster", address, "--out", tmp_path / "r.json")
    assert done.exit_code == 2 and "--episode" in done.output
    (tmp_path / "loose.py").write_text(
        "import torch\nfrom stategate.models.memories.recurrent.cell import RecurrentStep\n"
        "def policy():\n    torch.seed()\n"
        "    return RecurrentStep(torch.nn.GRU(4, 6), torch.nn.Linear(6, 4), write_threshold=0.0)\n"
    )
    loose = ["calibrate", f"{tmp_path}/loose.py:policy", "--episode", logs, "--write-rate", "0.2"]
    done = run(*loose, "--out", tmp_path / "r.json", "--cluster", address)
    assert done.exit_code == 1 and "a worker makes another model" in done.output
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = run(*ranges, "local")
    assert done.exit_code == 2 and "stategate[cluster]" in done.output
    assert not (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_values_thinned_apart_are_as_dense_as_the_sparser() -> None:
    steps = np.arange(3 * GateSample.most // 2, dtype=np.float32)[:, None]
    sparse, dense = GateSample(1, steps).thinned(), GateSample(1, steps[:10])
    assert (sparse.every, sparse.merged(dense).every) == (2, 2)
    merged = sparse.merged(dense).values[:, 0]
    assert merged.size <= GateSample.most
    assert merged.tolist() == [*steps[::2, 0].tolist(), 0.0, 2.0, 4.0, 6.0, 8.0]
