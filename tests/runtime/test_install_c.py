"""`stategate_install.h` decides as Python does, and survives a torn record at every byte."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from stategate.runtime.install.decide import STARTS, Event, Phase, Slots, decide, runs, target
from tests.runtime.test_install_decide import STEPS

HEADER = Path(__file__).parents[2] / "export" / "c" / "stategate_install.h"
# Without a warning in strict C, with what a robot's rules usually ask for.
FLAGS = [
    "-std=c99",
    "-pedantic",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wconversion",
    "-Wshadow",
    "-Wswitch-default",
]
SOURCE = """\
#include "stategate_install.h"
int decides(stategate_install *s, int event, uint32_t release, bool older)
{ return stategate_install_decide(s, event, release, older); }
int happens(stategate_install *s, int event, uint32_t release, bool older)
{ return (int)stategate_install_event(s, event, release, older); }
int boots(stategate_install *s) { return stategate_install_boot(s); }
int runs_of(const stategate_install *s) { return stategate_install_runs(s); }
int target_of(const stategate_install *s) { return stategate_install_target(s); }
"""
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
)


class InC(ctypes.Structure):
    _fields_ = [
        ("read", CALLBACK),
        ("write", CALLBACK),
        ("user", ctypes.c_void_p),
        ("number", ctypes.c_uint32),
        ("floor", ctypes.c_uint32),
        ("releases", ctypes.c_uint32 * 2),
        ("phase", ctypes.c_uint8),
        ("good", ctypes.c_uint8),
        ("starts", ctypes.c_uint8),
        ("has_back", ctypes.c_bool),
    ]

    def put(self, slots: Slots) -> None:
        self.floor, self.phase, self.good = slots.floor, slots.phase, slots.good
        self.starts, self.has_back = slots.starts, slots.has_back
        self.releases[:] = slots.releases

    def slots(self) -> Slots:
        first, second = self.releases
        rest = (self.has_back, self.starts, self.floor, (first, second))
        return Slots(Phase(self.phase), self.good, *rest)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("install")
    (folder / "install.c").write_text(SOURCE)
    include = f"-I{HEADER.parent}"
    command = ["cc", *FLAGS, include, "-shared", "-fPIC", "-O1", "install.c", "-o", "install.so"]
    subprocess.run(command, cwd=folder, check=True)
    loaded = ctypes.CDLL(str(folder / "install.so"))
    for name in ("decides", "happens"):
        arguments = [ctypes.POINTER(InC), ctypes.c_int, ctypes.c_uint32, ctypes.c_bool]
        getattr(loaded, name).argtypes = arguments
    return loaded


def test_c_decides_as_python_does_for_every_pair_that_can_be_reached(library: ctypes.CDLL) -> None:
    for (slots, _), (event, release, older), _ in STEPS:
        record = InC()
        record.put(slots)
        assert library.runs_of(ctypes.byref(record)) == (-1 if (r := runs(slots)) is None else r)
        assert library.target_of(ctypes.byref(record)) == target(slots)
        expected = decide(slots, event, release, older)
        permitted = library.decides(ctypes.byref(record), event, release, older)
        assert bool(permitted) == (expected is not None), (slots, event)
        assert record.slots() == (expected or slots), (slots, event)


class Flash:
    """Two places for a record; a write may be torn after some bytes."""

    def __init__(self) -> None:
        self.places = [b"\xff" * 64, b"\xff" * 64]
        self.tears: int | None = None
        self.fails = self.is_lost = False

    def record(self) -> InC:
        record = InC()
        record.read, record.write = CALLBACK(self._read), CALLBACK(self._write)
        return record

    def _read(self, _: int, place: int, data: int, size: int) -> bool:
        if self.is_lost:
            return False
        ctypes.memmove(data, self.places[place], size)
        return True

    def _write(self, _: int, place: int, data: int, size: int) -> bool:
        if self.fails:
            return False
        raw, whole = ctypes.string_at(data, size), size if self.tears is None else self.tears
        self.places[place] = raw[:whole] + self.places[place][whole:]
        return True


STORY = [
    (Event.UNPACKED, 1),
    (Event.INSTALL, 2),
    (Event.UNPACKED, 2),
    (Event.AGREED, 0),
    (Event.STARTED, 0),
    (Event.CONFIRMED, 0),
    (Event.GO_BACK, 0),
    (Event.INSTALL, 2),
    (Event.UNPACKED, 2),
    (Event.AGREED, 0),
    (Event.CONFIRMED, 0),
    (Event.REFUSED, 0),
    (Event.INSTALL, 3),
    (Event.REFUSED, 0),
]


def test_a_record_that_is_torn_at_any_byte_is_the_one_before_or_the_one_after(
    library: ctypes.CDLL,
) -> None:
    for end, (event, release) in enumerate(STORY):
        for tear in range(65):
            flash, slots = Flash(), Slots()
            record = flash.record()
            library.boots(ctypes.byref(record))
            for earlier, number in STORY[:end]:
                assert library.happens(ctypes.byref(record), earlier, number, False) == 0
                slots = decide(slots, earlier, number) or slots
            flash.tears = tear
            library.happens(ctypes.byref(record), event, release, False)
            flash.tears = None
            after = flash.record()
            library.boots(ctypes.byref(after))
            reached = [decide(s, Event.STARTED) for s in (slots, decide(slots, event, release))]
            assert after.slots() in reached, (event, tear)


def test_a_start_that_cannot_be_counted_runs_the_good_model(library: ctypes.CDLL) -> None:
    flash = Flash()
    record = flash.record()
    assert library.boots(ctypes.byref(record)) == -1
    for event, release in STORY[:4]:
        library.happens(ctypes.byref(record), event, release, False)
    assert library.boots(ctypes.byref(record)) == 1
    flash.fails = True
    assert library.boots(ctypes.byref(record)) == 0
    flash.fails = False
    for model in [*[1] * (STARTS - 1), 0]:
        assert library.boots(ctypes.byref(record)) == model


@pytest.mark.parametrize(
    ("place", "value"), [(0, 0), (7, 2), (24, 5), (25, 2), (27, 2), (8, 0)],
    ids=["magic", "version", "phase", "slot", "way back", "number"],
)  # fmt: skip
def test_a_record_with_a_right_checksum_that_says_what_none_can_say_is_none(
    library: ctypes.CDLL, place: int, value: int
) -> None:
    flash = Flash()
    record = flash.record()
    library.boots(ctypes.byref(record))
    assert library.happens(ctypes.byref(record), Event.UNPACKED, 1, False) == 0
    raw = bytearray(flash.places[1])
    raw[place] = value
    raw[60:] = zlib.crc32(raw[:60]).to_bytes(4, "little")
    flash.places[1] = bytes(raw)
    assert library.boots(ctypes.byref(flash.record())) == -1


def test_flash_that_is_not_read_and_events_that_nobody_knows_change_nothing(
    library: ctypes.CDLL,
) -> None:
    flash = Flash()
    record = flash.record()
    library.boots(ctypes.byref(record))
    before = list(flash.places)
    for event in (-1, max(Event) + 1, Event.AGREED):
        assert library.happens(ctypes.byref(record), event, 1, False) == -1
    assert flash.places == before
    library.happens(ctypes.byref(record), Event.UNPACKED, 1, False)
    flash.is_lost = True
    assert library.boots(ctypes.byref(flash.record())) == -1
