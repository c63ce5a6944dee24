from __future__ import annotations

import platform

import pytest

from stategate.contract.errors import TargetError
from stategate.targets import generic, load, names


@pytest.mark.parametrize("name", names())
def test_every_profile_loads_and_is_named_after_its_file(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert set(profile.precisions) == set(profile.engines)


def test_this_machine_is_recognised() -> None:
    assert generic().machine == platform.machine()


def test_an_unknown_machine_is_not_guessed() -> None:
    with pytest.raises(TargetError, match="riscv64"):
        generic("riscv64")


def test_an_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(TargetError, match="cpu-x86-64"):
        load("cpu-x86")
