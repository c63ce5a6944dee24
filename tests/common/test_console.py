"""Progress stays on one line of any terminal, ends full, and leaves logs alone."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import warnings

import pytest

from stategate.common.console import bar_line, notes_on_stderr
from stategate.contract.errors import BudgetWarning

WORK = """
import time
from stategate.common.console import progress
with progress(200, "cold starts, rates, allocations of a bundle with a long name") as report:
    for done in range({last}):
        report(done)
        time.sleep(0.005)
"""


def on_a_terminal(columns: int, last: int) -> str:
    """What a bar writes to a terminal of that width."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", WORK.format(last=last)], stderr=its, env=environment)
    os.close(its)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    return text.decode()


@pytest.mark.case("D10")
@pytest.mark.parametrize("columns", [12, 40, 120])
def test_a_bar_stays_on_one_line_of_the_terminal(columns: int) -> None:
    text = on_a_terminal(columns, 190)
    assert text.count("\n") == 1
    frames = [frame.replace("\x1b[K", "").strip() for frame in text.split("\r")]
    assert len([frame for frame in frames if frame]) > 2
    assert max(map(len, frames)) < columns


@pytest.mark.case("D10")
def test_a_bar_ends_full_where_the_work_needed_less_than_it_might_have() -> None:
    last = on_a_terminal(80, 100).split("\r")[-2]
    assert "100%" in last


@pytest.mark.case("D10")
def test_off_a_terminal_a_command_shows_the_label_and_no_frame_and_a_library_nothing() -> None:
    command = """
from stategate.common.console import notes_on_stderr
with notes_on_stderr():
    exec(WORK)
"""
    work = WORK.format(last=50)
    for code, stderr in (
        (
            f"WORK = {work!r}{command}",
            "cold starts, rates, allocations of a bundle with a long name\n",
        ),
        (work, ""),
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stderr == stderr


def test_a_warning_of_a_command_is_a_sentence_without_a_line_of_code() -> None:
    before = warnings.formatwarning
    with notes_on_stderr():
        assert warnings.formatwarning("too much", BudgetWarning, "f.py", 1) == (
            "BudgetWarning: too much\n"
        )
        assert "f.py:1" in warnings.formatwarning("old", DeprecationWarning, "f.py", 1)
    assert warnings.formatwarning is before


def test_a_bar_gives_up_its_time_and_itself_before_its_label() -> None:
    assert bar_line("stepping", 50, 100, 60.0, 80) == (
        "stepping [###############...............]  50% 1:00 left"
    )
    assert bar_line("stepping", 100, 100, 60.0, 40) == "stepping [###############] 100% in 1:00"
    assert bar_line("stepping", 50, 100, 60.0, 20) == "stepping  50%"
    assert bar_line("stepping", 50, 100, 60.0, 12) == "ste...  50%"
    assert bar_line("stepping", 0, 100, 60.0, 6) == "   0%"
    assert bar_line("nothing to do", 0, 0, 0.0, 80).startswith("nothing to do [####")
