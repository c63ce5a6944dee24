"""``python -m lab reproducible``: the same model built twice, with everything else different."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from stategate.common.console import progress
from stategate.contract.errors import ResultError
from stategate.contract.records import canonical_json

# A model of a user: the file lies at another path in each of the two places.
MODEL = '''\
import torch
from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models import StepResult


class Latch(torch.nn.Module):
    """Keeps the mix of the last input whose first element is above 0.5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.mix, self.out = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

    def step_spec(self):
        return StepSpec(
            inputs=(TensorSpec("x", (1, 4)),),
            outputs=(TensorSpec("y", (1, 2)),),
            states=(StateSpec("h", (1, 8), gate="large"),),
            gates=(GateSpec("large", "hard", (1, 1), 0.5, "limit"),),
        )

    def step(self, inputs, states):
        x = inputs["x"]
        gate = x[:, :1]
        h = torch.where(gate > inputs["limit"], torch.tanh(self.mix(x)), states["h"])
        return StepResult({"y": self.out(h)}, {"h": h}, {"large": gate})
'''

# What is built, by commands after each other; {out} is the bundle that is compared.
CASES: dict[str, tuple[str, ...]] = {
    "a file of the user's": ("export model.py:Latch --engines onnxruntime,native --out {out}",),
    "a trained model, calibrated": (
        "calibrate aura-hard --episodes 2 --steps 256 --thresholds=-1,0,1 --tolerance 1 "
        "--out record.json",
        "export aura-hard --calibration record.json --engines onnxruntime,native --out {out}",
    ),
    "a chunk graph": ("export gated-deltanet --out {out}",),
    "a pool": ("export gru-few --sessions 4 --engines onnxruntime,native --out {out}",),
    "an adopted file": (
        "export model.py:Latch --split fused --out first",
        "adopt first/graphs/step.onnx --state h=h_next --const limit=0.5 --out {out}",
    ),
    "int8, sealed by drift": (
        "episodes zoo gru-few --steps 512 --out held-out.npz",
        "export gru-few --out float",
        "quantise gru-few --precision int8 --engines onnxruntime,native --out candidate",
        "drift float candidate --episode held-out.npz --out report --max-mean-error 9 "
        "--max-accuracy-loss 1 --max-norm-growth 9 --max-flip-rate 1 --max-write-change 1 "
        "--seal {out}",
    ),
}
# Another user, who may read what only root can: the interpreter often lies in root's home.
NOBODY = 65534
AS_NOBODY = (
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom something is built."""

    folder: str
    user: int | None
    umask: int
    settings: dict[str, str]

    def words(self) -> dict[str, Any]:
        """For the report."""
        user = os.getuid() if self.user is None else self.user
        return {"folder": self.folder, "user": user, "umask": oct(self.umask)} | self.settings


def places() -> tuple[Place, Place]:
    """Two that differ in all that a build must not depend on."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "UTC"}
    other = {"LC_ALL": "C.UTF-8", "TZ": "Pacific/Kiritimati", "LANG": "de_DE.UTF-8"}
    can_change = os.getuid() == 0 and shutil.which("setpriv")
    second = NOBODY if can_change else None
    return (
        Place("a", None, 0o022, plain | {"PYTHONHASHSEED": "0"}),
        Place("deep below/another pläce", second, 0o077, other | {"PYTHONHASHSEED": "4242"}),
    )


def build(place: Place, root: Path, case: str, commands: tuple[str, ...]) -> Path:
    """Build one case in one place, and say where its bundle is.

    Raises:
        ResultError: A command failed.
    """
    home = root / place.folder
    folder = home / case.replace(" ", "-")
    scratch = home / "scratch"
    for one in (folder, scratch):
        one.mkdir(parents=True, exist_ok=True)
        if place.user is not None:
            os.chown(one, place.user, place.user)
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "SOURCE_DATE_EPOCH": "1700000000",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        **place.settings,
    }
    program = Path(sys.executable).with_name("stategate")
    for command in commands:
        words = [word.format(out="bundle") for word in command.split()]
        done = subprocess.run(
            [*(AS_NOBODY if place.user is not None else ()), str(program), *words],
            cwd=folder,
            env=environment,
            umask=place.umask,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode:
            raise ResultError("a build failed", found=f"{command}\n{done.stdout}{done.stderr}")
    return folder / "bundle"


def digests(bundle: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{place}.{key}")
    elif one != other:
        yield f"{place[1:]}: {one!r} and {other!r}"


@click.command("reproducible")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Rows as JSON.")
@click.option("--scratch", type=click.Path(path_type=Path), default="/tmp/stategate-reproducible")
@click.option("--only", default="", help="Cases whose name holds this.")
def reproducible(out: Path, scratch: Path, only: str) -> None:
    """Build bundles twice: at other times and paths, as other users, in other locales."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    scratch.chmod(0o755)
    cases = {name: commands for name, commands in CASES.items() if only in name}
    rows: list[dict[str, Any]] = []
    with progress(2 * len(cases), "building") as report:
        for name, commands in cases.items():
            bundles, times = [], []
            for place in places():
                times.append(datetime.now(timezone.utc).isoformat(timespec="seconds"))
                bundles.append(build(place, scratch, name, commands))
                report(2 * len(rows) + len(bundles))
            first, second = map(digests, bundles)
            parted = sorted(n for n in {*first, *second} if first.get(n) != second.get(n))
            manifests = [json.loads((b / "manifest.json").read_bytes()) for b in bundles]
            rows.append(
                {
                    "case": name,
                    "files": len(first),
                    "bytes": sum(p.stat().st_size for p in bundles[0].rglob("*") if p.is_file()),
                    "digest": first["manifest.json"],
                    "equal": not parted,
                    "different_files": parted,
                    "different_fields": list(differences(*manifests)),
                    "built": times,
                }
            )
            click.echo(
                f"{'equal    ' if not parted else 'DIFFERENT'} {len(first):>3} files  {name}"
            )
            for line in rows[-1]["different_fields"]:
                click.echo(f"    {line}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(canonical_json({"places": [p.words() for p in places()], "rows": rows}))
    if any(not row["equal"] for row in rows):
        raise SystemExit(1)
