"""The attack counts what is lost, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.attack import disks
from lab.attack.places import BUNDLE
from lab.attack.table import FIRST, Row, page
from lab.power_loss import Device
from stategate.contract import Bundle


@pytest.mark.parametrize("full", [False, True])
def test_a_failing_disk_loses_nothing_and_a_loss_is_counted(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(disks, "_STEPS_OF_A_FOLDER", 12)
    tried, lost = disks.failing_disks(BUNDLE, 6, 7, full)
    assert tried >= 6 and lost == 0
    monkeypatch.setattr(Device, "recover", lambda *_: ("another memory", True))
    assert disks.failing_disks(BUNDLE, 6, 7, full)[1] > 0


def test_damaged_files_are_refused_and_one_that_is_taken_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert disks.damaged_bundles(BUNDLE, 30, 7) == (30, 0)
    assert disks.damaged_memories(BUNDLE, 30, 7) == (30, 0)
    monkeypatch.setattr(Device, "recover", lambda *_: (None, False))
    assert disks.damaged_memories(BUNDLE, 30, 7) == (30, 30)
    monkeypatch.setattr(Bundle, "open", lambda path: None)
    assert disks.damaged_bundles(BUNDLE, 30, 7) == (30, 30)


def test_the_page_has_each_kind_beside_the_first_edition() -> None:
    text = Path("docs/evidence/attack.md").read_text()
    rows = [Row(kind, "x", 12_345, 0, 1.0, 3) for kind in (*FIRST, "bleed")]
    again = page(text, rows, 0.05)
    assert "| kills | 3,000 | 0 | 12,345 | 0 |" in again
    assert "| bleed | not counted |  | 12,345 | 0 |" in again
    assert page(again, rows, 0.05) == again
