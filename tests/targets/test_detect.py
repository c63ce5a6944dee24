from __future__ import annotations

from pathlib import Path

import pytest

from stategate.contract.errors import MissingDependencyError, TargetError
from stategate.targets.detect import detect
from stategate.targets.ladder import load_ladder

A78AE = "".join(
    f"processor\t: {core}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd42\n\n"
    for core in range(6)
)
TX2 = "".join(
    f"processor\t: {core}\nCPU implementer\t: {who}\nCPU architecture: 8\nCPU part\t: {part}\n\n"
    for core, (who, part) in enumerate([("0x41", "0xd07")] * 4 + [("0x4e", "0x003")] * 2)
)
# Lines as they stand in files of real boards, shortened.
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0"
    "nvidia,tegra234\0",
    "proc/cpuinfo": A78AE,
    "proc/meminfo": "MemTotal:        7650336 kB\nMemFree:         3000000 kB\n",
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "proc/mounts": "/dev/nvme0n1p1 / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0\n",
    "sys/block/nvme0n1/size": "500118192\n",
    "sys/block/mmcblk0/size": "124735488\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
    "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
    "var/lib/nvpmodel/status": "pmode:0002",
    "usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.11"}}',
    "usr/include/aarch64-linux-gnu/NvInferVersion.h": "#define NV_TENSORRT_MAJOR 10\n"
    "#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n#define NV_TENSORRT_BUILD 30\n",
}
NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,jetson-nano\0"
    "nvidia,tegra210\0",
    "proc/mounts": "/dev/root / ext4 rw 0 0\n/dev/mmcblk0p1 / ext4 rw,relatime 0 0\n",
    "sys/block/mmcblk0/size": "62333952\n",
    "sys/block/mmcblk0/device/type": "SD\n",
    "var/lib/dpkg/status": "Package: libnvinfer8\nStatus: install ok installed\n"
    "Architecture: arm64\nVersion: 8.2.1-1+cuda10.2\n\nPackage: nvidia-l4t-core\n"
    "Version: 32.7.1-20220219090432\n\nPackage: nvidia-jetpack\nVersion: 4.6.1-b110\n",
    "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n",
}
PI_5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU part\t: 0xd0b\n\nRevision\t: c04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "proc/mounts": "/dev/mmcblk0p2 / ext4 rw 0 0\n",
    "sys/block/mmcblk0/device/type": "SD\n",
    "sys/block/mmcblk0/size": "61849600\n",
}
PC = {
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\n"
    "model name\t: Intel(R) Core(TM) i7-1260P\nflags\t\t: fpu lm avx2\n",
    "proc/mounts": "overlay / overlay rw 0 0\n",
    "proc/sys/kernel/arch": "x86_64\n",
    "sys/class/dmi/id/sys_vendor": "LENOVO\n",
    "sys/class/dmi/id/product_name": "21CCS00000\n",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_an_orin_nano_is_recognised_by_its_files(tmp_path: Path) -> None:
    host = detect(tree(tmp_path, ORIN_NANO))
    assert host.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (host.machine, host.soc) == ("aarch64", "nvidia,tegra234")
    assert (host.cpu, host.cores) == ("Cortex-A78AE", 6)
    assert host.memory_bytes == 7_650_336 * 1024
    assert (host.l4t, host.jetpack, host.cuda, host.tensorrt) == (
        "36.4.3", "6.2", "12.6.11", "10.3.0.30",
    )  # fmt: skip
    assert (host.power_mode, host.governor) == ("MAXN_SUPER", "schedutil")
    assert host.storage == "nvme0n1 (NVMe, 256 GB)"
    assert host.unknowns == ()


def test_a_nano_of_2022_is_recognised_by_its_packages(tmp_path: Path) -> None:
    host = detect(tree(tmp_path, NANO))
    assert (host.l4t, host.jetpack, host.cuda, host.tensorrt) == (
        "32.7.1", "4.6.1", "10.2.300", "8.2.1",
    )  # fmt: skip
    assert host.storage == "mmcblk0 (SD card, 32 GB)"
    assert any(sentence.startswith("power_mode: ") for sentence in host.unknowns)


def test_two_kinds_of_cores_are_both_named(tmp_path: Path) -> None:
    host = detect(tree(tmp_path, {"proc/cpuinfo": TX2}))
    assert (host.cpu, host.cores) == ("Cortex-A57 + Denver 2", 6)


def test_a_processor_that_is_given_by_no_number_is_unknown(tmp_path: Path) -> None:
    told = "processor\t: 0\nCPU implementer\t: none\nCPU part\t: vendor's own\n"
    assert detect(tree(tmp_path, {"proc/cpuinfo": told})).cpu is None


def test_a_raspberry_pi_is_not_asked_for_jetpack(tmp_path: Path) -> None:
    host = detect(tree(tmp_path, PI_5))
    assert (host.cpu, host.soc) == ("Cortex-A76", "brcm,bcm2712")
    asked = {sentence.split(":")[0] for sentence in host.unknowns}
    assert not asked & {"jetpack", "l4t", "power_mode"}


def test_a_pc_in_a_container_says_what_it_cannot_tell(tmp_path: Path) -> None:
    host = detect(tree(tmp_path, PC))
    assert (host.machine, host.board) == ("x86_64", "LENOVO 21CCS00000")
    assert host.cpu == "Intel(R) Core(TM) i7-1260P"
    assert host.storage is None
    assert "storage: the root file system lies on no single block device" in host.unknowns


def test_an_unknown_release_of_jetson_linux_is_never_rounded(tmp_path: Path) -> None:
    files = ORIN_NANO | {"etc/nv_tegra_release": "# R40 (release), REVISION: 1.0, GCID: 1\n"}
    host = detect(tree(tmp_path, files))
    assert (host.l4t, host.jetpack) == ("40.1.0", None)
    assert any("L4T 40.1.0, which is not in the ladder" in s for s in host.unknowns)


def test_a_release_on_which_the_sources_disagree_names_both(tmp_path: Path) -> None:
    files = ORIN_NANO | {"etc/nv_tegra_release": "# R36 (release), REVISION: 5.0, GCID: 1\n"}
    host = detect(tree(tmp_path, files))
    assert host.jetpack is None
    assert any("6.2.1 or 6.2.2" in sentence for sentence in host.unknowns)


@pytest.mark.parametrize("status", ["", "pmode:0009", "\xff\xfe garbage"])
def test_a_power_mode_that_is_not_reported_is_not_the_default(tmp_path: Path, status: str) -> None:
    host = detect(tree(tmp_path, ORIN_NANO | {"var/lib/nvpmodel/status": status}))
    assert host.power_mode is None
    assert any(sentence.startswith("power_mode: ") for sentence in host.unknowns)


def test_an_empty_tree_tells_nothing_and_says_so(tmp_path: Path) -> None:
    host = detect(tmp_path)
    assert (host.board, host.cpu, host.memory_bytes, host.storage) == (None,) * 4
    assert len(host.unknowns) >= 8


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no such root"):
        detect(tmp_path / "none")


def test_a_device_without_a_toml_reader_still_tells_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> None:
        raise MissingDependencyError("tomli", "export")

    monkeypatch.setattr("stategate.targets.toml_tables._loads", lacking)
    host = detect(tree(tmp_path, ORIN_NANO))
    assert (host.jetpack, host.tensorrt) == (None, "10.3.0.30")
    assert any("tomli" in sentence for sentence in host.unknowns)


def test_every_rung_says_who_says_so() -> None:
    for release in load_ladder().release:
        assert len(release.source) > 20
        assert release.l4t or release.jetpack == "7.2.2"
