"""What the doctor says of trees that are put together from published lines.

No board was at hand, and no tree here is a copy of a whole one. Lines of real machines, by address:

* Jetson AGX Thor, R38.2.0: github.com/rbonghi/jetson_stats/issues/711
* Jetson AGX Orin, R39.2.0: github.com/rbonghi/jetson_stats/issues/864
* Jetson Orin NX, versions of R36.4.3: github.com/rbonghi/jetson_stats/issues/603
* the kernel module's line on an Orin NX, R35.3.1: github.com/nix-community/nixGL/issues/139
* driver 540.4.0 with CUDA 12.6 on an Orin Nano: github.com/modular/mojo-gpu-puzzles/pull/257
* the open kernel module's line on a PC: github.com/nix-community/nixGL/issues/121
* driver 550.40.07 with CUDA 12.4 and a GeForce RTX 4070:
  github.com/Frogging-Family/nvidia-all/pull/212
* driver 580.126.09 with CUDA 13.0: github.com/bottlerocket-os/bottlerocket-kernel-kit/pull/357

Where a file has no such line (other releases, library files, ``nvpmodel``), it is written in the
form that the files of the others have.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.targets.doctor import examine
from stategate.targets.nvidia import Driver, driver_of, wheels_of

RELEASES = {
    "36.4.3": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n",
    "38.2.0": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Aug 22 00:55:42 UTC 2025\n",
    "39.2.0": "# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun  1 09:28:48 PM UTC 2026\n",
}
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for"
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
        "etc/nv_tegra_release": RELEASES.get(
            l4t,
            f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: "
            "aarch64\n",
        ),
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


JETPACK_5 = board("35.3.1", "8.5.2.2", "11.4.19", "3.8") | {
    "proc/driver/nvidia/version": f"{OPEN} aarch64  35.3.1  Release Build  "
    "(buildbrain@mobile-u64-6289-d7000)  Sun Mar 19 08:09:33 PDT 2023\n"
    "GCC version:  gcc version 9.3.0 (Buildroot 2020.08) \n",
}
JETPACK_6_0 = board("36.3.0", "8.6.2.3", "12.2.12", "3.10")
JETPACK_6_2 = board("36.4.3", "10.3.0.30", "12.6.68", "3.10") | {
    "proc/driver/nvidia/version": f"{OPEN} aarch64  540.4.0  Release Build\n",
}
JETPACK_7 = board("38.2.0", "10.13.3.9", "13.0.48", "3.12") | {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0"
    "nvidia,tegra264\0",
}
JETPACK_7_2 = board("39.2.0", "10.16.2.10", "13.2.0", "3.12") | {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
}


def desktop(module: str, *wheels: str) -> dict[str, str]:
    """Files of a PC with an NVIDIA GPU, and wheels that pip put into the system's Python."""
    site = "usr/local/lib/python3.12/dist-packages"
    return {
        "proc/sys/kernel/arch": "x86_64\n",
        "proc/driver/nvidia/version": f"{module}\nGCC version:  gcc version 12.2.0 (GCC) \n",
        "usr/bin/python3.12": "",
        "usr/lib/x86_64-linux-gnu/libcuda.so.1": "",
        "dev/nvidia0": "",
        **{f"{site}/{wheel}.dist-info/METADATA": "" for wheel in wheels},
    }


RTX_13 = "tensorrt_rtx_cu13_bindings-1.7.1.116"


def findings(folder: Path, files: dict[str, str], *without: str) -> dict[str, tuple[str, str]]:
    for name, text in files.items():
        if name not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return {one.what: (one.level, f"{one.fact}; {one.remedy}") for one in examine(folder)}


@pytest.mark.parametrize(
    "files", [JETPACK_6_0, JETPACK_6_2, JETPACK_7, JETPACK_7_2], ids=["6.0", "6.2", "7.0", "7.2"]
)
def test_a_whole_jetpack_is_well(tmp_path: Path, files: dict[str, str]) -> None:
    found = findings(tmp_path, files)
    assert {level for level, _ in found.values()} == {"ok"}, found
    assert set(found) == {
        "board", "jetpack", "cuda", "python", "driver", "gpu", "tensorrt", "bindings",
    }  # fmt: skip


def test_the_python_of_jetpack_5_is_too_old_and_the_way_out_is_reported(tmp_path: Path) -> None:
    found = findings(tmp_path, JETPACK_5)
    assert [what for what, (level, _) in found.items() if level == "missing"] == ["python"]
    assert "3.8, and stategate needs 3.10" in found["python"][1]
    assert "onnxruntime or native" in found["python"][1]


def test_jetpack_4_is_advised_to_step_in_c(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("module", "wheel", "level", "told"),
    [
        (f"{OPEN} x86_64  580.126.09  Release Build", RTX_13, "ok", "1.7.1.116 for CUDA 13"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.09  Wed Jan  7 22:59:56 UTC 2026",
         RTX_13, "ok", "1.7.1.116 for CUDA 13"),
        (f"{OPEN} x86_64  550.40.07  Release Build", RTX_13, "missing",
         "update the driver to release 580 or newer, or pip install tensorrt-rtx-cu12"),
        (f"{OPEN} x86_64  525.60.11  Release Build  (archlinux-builder@localhost)  ",
         "tensorrt_cu13_bindings-10.13.3.9", "missing", "or pip install tensorrt-cu12"),
        (f"{OPEN} x86_64  550.40.07  Release Build", "tensorrt_rtx_cu12_bindings-1.7.1.116", "ok",
         "1.7.1.116 for CUDA 12"),
    ],
)  # fmt: skip
def test_wheels_on_a_pc_are_held_against_its_driver(
    tmp_path: Path, module: str, wheel: str, level: str, told: str
) -> None:
    found = findings(tmp_path, desktop(module, wheel))
    assert found["bindings"][0] == level and told in found["bindings"][1]
    assert found["driver"][0] == "ok" and "libcuda.so.1" in found["driver"][1]
    assert "jetpack" not in " ".join(remedy for _, remedy in found.values())


def test_a_pc_without_tensorrt_hears_of_wheels_for_its_driver(tmp_path: Path) -> None:
    found = findings(tmp_path, desktop(f"{OPEN} x86_64  550.40.07  Release Build"))
    assert found["tensorrt"][0] == "missing"
    assert "pip install tensorrt-rtx-cu12" in found["tensorrt"][1]
    assert "apt" not in found["tensorrt"][1]


def test_too_old_a_driver_hears_what_to_do(tmp_path: Path) -> None:
    old = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  418.39  Sat Feb  9 19:19:37 CST 2019"
    level, told = findings(tmp_path, desktop(old, RTX_13))["driver"]
    assert level == "missing" and "418.39" in told and "CUDA 11.4" in told
    assert "update it to release 470 or newer, or step with onnxruntime or native" in told


@pytest.mark.parametrize("answer", ["12040", "13000"])
def test_the_drivers_own_library_is_asked_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(f"int cuDriverGetVersion(int *v) {{ *v = {answer}; return 0; }}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr("stategate.targets.nvidia._NAME", str(library))
    driver = driver_of(Path("/"))
    assert driver is not None and driver.is_exact
    assert driver.cuda == (int(answer) // 1000, int(answer) % 1000 // 10)
    assert f"CUDA {driver.cuda[0]}.{driver.cuda[1]}" in str(driver)
    assert driver.runs((13, 0)) == (answer == "13000")


def test_a_library_that_is_no_driver_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    monkeypatch.setattr("stategate.targets.nvidia._NAME", str(tmp_path / "libcuda.so.1"))
    assert driver_of(Path("/")) == Driver(tmp_path / "libcuda.so.1", None, None, False)
    monkeypatch.setattr("stategate.targets.nvidia._NAME", str(tmp_path / "none"))
    assert driver_of(Path("/")) is None


def test_wheels_are_looked_for_where_this_python_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{RTX_13}.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (wheel,) = [one for one in wheels_of(Path("/")) if one.library == "tensorrt_rtx"]
    assert (wheel.version, wheel.cuda, wheel.name_for(12)) == (
        "1.7.1.116", 13, "tensorrt-rtx-cu12",
    )  # fmt: skip


def test_an_unknown_release_is_a_note(tmp_path: Path) -> None:
    told = "# R40 (release), REVISION: 1.0, GCID: 1\n"
    found = findings(tmp_path, JETPACK_7_2 | {"etc/nv_tegra_release": told})
    assert found["jetpack"][0] == "note" and "40.1.0" in found["jetpack"][1]


def test_a_user_who_may_not_open_the_gpu_reads_which_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may be root, who may do all
    level, told = findings(tmp_path, JETPACK_6_2)["gpu"]
    assert level == "missing" and "video,render" in told


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("etc/nv_tegra_release", "\0\1 (release)"),
        ("proc/driver/nvidia/version", "NVRM version: Kernel Module for aarch64 what"),
        ("usr/include/aarch64-linux-gnu/NvInferVersion.h", "#define NV_TENSORRT_MAJOR ten\n"),
        ("var/lib/dpkg/status", "Package: libnvinfer10\nVersion: newest\n"),
        ("usr/local/cuda/version.json", "[]"),
        ("var/lib/nvpmodel/status", "pmode:"),
    ],
)
def test_a_tree_of_damaged_files_is_still_looked_over(tmp_path: Path, file: str, text: str) -> None:
    without = "usr/include/aarch64-linux-gnu/NvInferVersion.h" if "dpkg" in file else ""
    found = findings(tmp_path, JETPACK_6_2 | {file: text}, without)
    assert {"board", "python", "driver", "gpu"} <= set(found)


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
