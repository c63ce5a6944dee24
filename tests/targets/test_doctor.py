from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from stategate.runtime.cli import main
from stategate.targets.doctor import examine

LIB = "usr/lib/aarch64-linux-gnu"


def board(l4t: str, tensorrt: str, cuda: str, python: str, **more: str) -> dict[str, str]:
    """Files of a Jetson as its release of JetPack leaves them, shortened."""
    major = tensorrt.split(".")[0]
    release, revision = l4t.split(".", 1)
    digits = dict(zip(("MAJOR", "MINOR", "PATCH", "BUILD"), tensorrt.split("."), strict=False))
    return {
        "proc/device-tree/model": "NVIDIA Jetson Orin NX\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0",
        "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU part\t: 0xd42\n",
        "proc/meminfo": "MemTotal:       15656132 kB\n",
        "etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: "
        "generic, EABI: aarch64\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=15W >\n",
        "var/lib/nvpmodel/status": "pmode:0000",
        "usr/local/cuda/version.json": '{"cuda" : {"version" : "' + cuda + '"}}',
        "usr/include/aarch64-linux-gnu/NvInferVersion.h": "".join(
            f"#define NV_TENSORRT_{name} {digit}\n" for name, digit in digits.items()
        ),
        f"{LIB}/nvidia/libcuda.so.1": "",
        f"{LIB}/libnvonnxparser.so.{major}": "",
        f"usr/lib/python3/dist-packages/tensorrt/tensorrt.cpython-{python.replace('.', '')}-"
        "aarch64-linux-gnu.so": "",
        f"usr/bin/python{python}": "",
        "usr/src/tensorrt/bin/trtexec": "",
        "dev/nvhost-gpu": "",
        **more,
    }


JETPACK_5 = board("35.4.1", "8.5.2.2", "11.4.19", "3.8")
JETPACK_6_0 = board("36.3.0", "8.6.2.3", "12.2.12", "3.10")
JETPACK_6_2 = board("36.4.3", "10.3.0.30", "12.6.11", "3.10")
JETPACK_7 = board("38.2.0", "10.13.3.9", "13.0.48", "3.12")
JETPACK_7_2 = board("39.2.0", "10.16.2.10", "13.2.0", "3.12")


def findings(folder: Path, files: dict[str, str], *without: str) -> dict[str, tuple[str, str]]:
    for name, text in files.items():
        if name not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return {one.what: (one.level, f"{one.told}; {one.remedy}") for one in examine(folder)}


@pytest.mark.parametrize(
    "files", [JETPACK_6_0, JETPACK_6_2, JETPACK_7, JETPACK_7_2], ids=["6.0", "6.2", "7.0", "7.2"]
)
def test_a_whole_jetpack_is_well(tmp_path: Path, files: dict[str, str]) -> None:
    found = findings(tmp_path, files)
    assert {level for level, _ in found.values()} == {"ok"}, found
    assert set(found) == {
        "board", "jetpack", "cuda", "python", "driver", "gpu", "tensorrt", "bindings",
    }  # fmt: skip


def test_the_python_of_jetpack_5_is_too_old_and_the_way_out_is_told(tmp_path: Path) -> None:
    found = findings(tmp_path, JETPACK_5)
    assert [what for what, (level, _) in found.items() if level == "missing"] == ["python"]
    assert "3.8, and stategate needs 3.10" in found["python"][1]
    assert "onnxruntime or native" in found["python"][1]


def test_jetpack_4_is_told_to_step_in_c(tmp_path: Path) -> None:
    found = findings(tmp_path, board("32.7.1", "8.2.1.9", "10.2.300", "3.6"))
    assert "too old for any engine but native" in found["jetpack"][1]
    assert "8.2.1.9, and engines are built by" in found["tensorrt"][1]


@pytest.mark.parametrize(
    ("absent", "what", "remedy"),
    [
        (f"{LIB}/nvidia/libcuda.so.1", "driver", "nvidia-l4t-cuda"),
        ("dev/nvhost-gpu", "gpu", "--runtime nvidia"),
        ("usr/include/aarch64-linux-gnu/NvInferVersion.h", "tensorrt", "nvidia-jetpack"),
        (f"{LIB}/libnvonnxparser.so.10", "onnx parser", "libnvonnxparsers10"),
        (
            "usr/lib/python3/dist-packages/tensorrt/tensorrt.cpython-310-aarch64-linux-gnu.so",
            "bindings",
            "python3-libnvinfer",
        ),
        ("etc/nv_tegra_release", "jetpack", "flash"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    tmp_path: Path, absent: str, what: str, remedy: str
) -> None:
    level, told = findings(tmp_path, JETPACK_6_2, absent)[what]
    assert level == "missing" and remedy in told


def test_notes_hinder_nothing(tmp_path: Path) -> None:
    files = JETPACK_6_2 | {
        "var/lib/nvpmodel/status": "pmode:0001",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "usr/local/cuda/version.json": '{"cuda" : {"version" : "12.8.1"}}',
    }
    found = findings(tmp_path, files, "usr/src/tensorrt/bin/trtexec")
    assert {w for w, (level, _) in found.items() if level == "note"} == {
        "cuda", "power mode", "governor", "trtexec",
    }  # fmt: skip
    assert "12.8.1, where this JetPack ships 12.6" in found["cuda"][1]
    assert "missing" not in {level for level, _ in found.values()}


def test_an_unknown_release_is_a_note(tmp_path: Path) -> None:
    told = "# R40 (release), REVISION: 1.0, GCID: 1\n"
    found = findings(tmp_path, JETPACK_7_2 | {"etc/nv_tegra_release": told})
    assert found["jetpack"][0] == "note" and "40.1.0" in found["jetpack"][1]


def test_a_user_who_may_not_open_the_gpu_is_told_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may be root, who may do all
    level, told = findings(tmp_path, JETPACK_6_2)["gpu"]
    assert level == "missing" and "video,render" in told


def test_a_machine_without_a_gpu_is_not_ill(tmp_path: Path) -> None:
    found = findings(tmp_path, {"proc/sys/kernel/arch": "x86_64\n", "usr/bin/python3.12": ""})
    assert found["gpu"][0] == "note" and found["python"] == ("ok", "3.12; ")


def test_the_command_exits_by_what_is_missing(tmp_path: Path) -> None:
    findings(tmp_path, JETPACK_5)
    done = CliRunner().invoke(main, ["doctor", "--root", str(tmp_path)])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0].startswith("ok       board        NVIDIA Jetson Orin NX, aarch64")
    assert all(line.split()[0] in ("ok", "note", "missing") for line in lines)
    (tmp_path / "usr/bin/python3.10").write_text("")
    done = CliRunner().invoke(main, ["doctor", "--root", str(tmp_path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)[1]["what"] == "jetpack"
    nowhere = CliRunner().invoke(main, ["doctor", "--root", str(tmp_path / "none")])
    assert nowhere.exit_code == 2 and "no such root" in nowhere.output
