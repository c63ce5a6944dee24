from __future__ import annotations

import math

import msgspec
import pytest

from stategate.common.flash import METADATA_BYTES_ESTIMATE, Storage
from stategate.contract.errors import SpecError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "does not say"),
        ({"capacity_bytes": 1, "pe_cycles": 1}, "does not say"),
        ({"endurance_bytes": 1, "pe_cycles": 1}, "twice"),
        ({"endurance_bytes": 1, "write_amplification": 2}, "twice"),
        ({"endurance_bytes": 0}, "endurance_bytes"),
        ({"endurance_bytes": 1, "block_bytes": 0}, "block_bytes"),
        ({"endurance_bytes": 1, "metadata_bytes": -1}, "metadata_bytes"),
        ({"capacity_bytes": 1, "pe_cycles": 1, "write_amplification": 0.5}, "amplification"),
        ({"capacity_bytes": 1, "pe_cycles": math.nan, "write_amplification": 1}, "pe_cycles"),
        ({"endurance_bytes": 1, "assumed": ("luck",)}, "luck"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Storage("bad", "test", **fields)


def test_a_storage_is_strict_about_unknown_fields() -> None:
    row = {"name": "x", "source": "test", "endurance_bytes": 1, "tbw": 2}
    with pytest.raises(msgspec.ValidationError, match="tbw"):
        msgspec.convert(row, Storage)


def test_the_metadata_of_a_rewrite_is_an_estimate_until_it_is_measured() -> None:
    storage = Storage("x", "test", endurance_bytes=1)
    assert storage.metadata_bytes == METADATA_BYTES_ESTIMATE == 20 * 1024
    assert storage.assumed == ("metadata_bytes",)
