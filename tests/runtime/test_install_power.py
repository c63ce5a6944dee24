"""Whenever its device loses power or is killed, an installation runs A or B, never neither."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lab.block_device import Cut, Recorder, cuts_in_order, cuts_out_of_order
from stategate import Installation, install, release
from stategate.contract import Bundle
from stategate.runtime.install.decide import Event, runs
from stategate.runtime.install.record import InstallFolder

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="pathlib calls os by its module from Python 3.11 on"
)
# Of the last one everything that can be written of a slot is written a second time.
STORY = ("install 1", "install 2", "AGREED", "STARTED", "CONFIRMED", "install 3", "GO_BACK")


@pytest.fixture(scope="module")
def releases(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    root = tmp_path_factory.mktemp("releases")
    return [release(shutil.copytree(tiny_bundle, root / str(n)), n) for n in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def recorded(releases: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """What the story asked of the disk, with what ran after each part of it."""
    place = tmp_path_factory.mktemp("disk") / "robot"
    place.mkdir()
    recorder, folder = Recorder(place), InstallFolder(place)
    for part in STORY:
        with recorder.recording():
            if part.startswith("install"):
                install(releases[int(part[-1])], place)
            else:
                assert folder.change(Event[part], "") is not None
        recorder.mark(running(place))
    return recorder


def running(place: Path) -> str | None:
    """The digest of what would run, every byte of it checked; None where nothing is installed."""
    record = InstallFolder(place).read()
    slot = runs(record.slots)
    if slot is None:
        return None
    bundle = Bundle.open(place / "ab"[slot])
    assert bundle.digest == record.digests[slot]
    return bundle.digest


def judge(cuts: Iterable[Cut], place: Path) -> int:
    """See what a restart finds after each cut; the number of cuts."""
    count = 0
    for cut in cuts:
        shutil.rmtree(place, ignore_errors=True)
        for name, raw in cut.content.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(raw)
        place.mkdir(exist_ok=True)
        assert running(place) in (cut.safe, cut.coming)
        count += 1
    return count


def test_a_power_cut_leaves_the_bundle_before_or_the_one_after(
    recorded: Recorder, tmp_path: Path
) -> None:
    assert judge(islice(cuts_in_order(recorded.events), 0, None, 4), tmp_path / "disk") > 50
    assert judge(cuts_out_of_order(recorded.events, 4, 60), tmp_path / "disk") == 60


@pytest.mark.slow
def test_so_does_every_single_cut_and_thousands_out_of_order(
    recorded: Recorder, tmp_path: Path
) -> None:
    assert judge(cuts_in_order(recorded.events), tmp_path / "disk") > 250
    judge(cuts_out_of_order(recorded.events, 5, 3000), tmp_path / "disk")


def test_the_made_up_disk_loses_an_update_that_is_not_synced(
    releases: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the test above worth something."""
    from stategate.runtime.install import unpack

    monkeypatch.setattr(unpack, "sync_folder", lambda _: None)
    place = tmp_path / "robot"
    place.mkdir()
    recorder = Recorder(place)
    with recorder.recording():
        install(releases[0], place)
    recorder.mark(running(place))
    with pytest.raises(Exception, match="is not a bundle|missing"):
        judge(cuts_out_of_order(recorder.events, 4, 200), tmp_path / "disk")


ROBOT = """
import sys, time, numpy as np
from stategate import Installation
rng = np.random.default_rng(0)
with Installation.open(sys.argv[1]) as robot:
    print("up", flush=True)
    while True:
        robot.step(x=rng.standard_normal((1, 4)).astype(np.float32))
        time.sleep(0.0002)
"""
INSTALLER = """
import sys
from stategate import Trial, install
print("up", flush=True)
install(sys.argv[2], sys.argv[1], trial=Trial(shadow_steps=64, steps=400))
"""


@pytest.mark.slow
def test_sigkill_of_robot_and_installer_leaves_a_or_b(
    releases: list[Bundle], tmp_path: Path
) -> None:
    place, chance = tmp_path / "robot", random.Random(6)
    install(releases[0], place)
    digests = {bundle.digest for bundle in releases}
    phases = set()
    for turn in range(25):
        update = release(releases[turn % 2], turn + 1)
        digests.add(update.digest)
        words = [(ROBOT, place), (INSTALLER, place, update.path)]
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", text, *map(str, rest)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for text, *rest in words
        ]
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()
        time.sleep(chance.random() * 0.8)
        for program in chance.sample(programs, 2):
            os.kill(program.pid, signal.SIGKILL)
            program.wait()
            program.stdout.close()
        phases.add(Installation.status(place).phase)
        assert running(place) in digests
    with Installation.open(place) as robot:
        robot.step(x=np.zeros((1, 4), np.float32))
    assert len(phases) > 1
