"""When a bundle was built, and whether anything that a clock decides may go into it."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from stategate.contract.errors import ExportError

_VARIABLE = "SOURCE_DATE_EPOCH"  # reproducible-builds.org


def may_measure() -> bool:
    """False where SOURCE_DATE_EPOCH asks for the same bytes every time: no two times are alike."""
    return not os.environ.get(_VARIABLE)


def build_time() -> str:
    """UTC time of the build; SOURCE_DATE_EPOCH overrules the clock."""
    epoch = os.environ.get(_VARIABLE)
    try:
        moment = (
            datetime.fromtimestamp(int(epoch), timezone.utc)
            if epoch
            else datetime.now(timezone.utc)
        )
    except (ValueError, OverflowError, OSError) as problem:
        raise ExportError(
            f"{_VARIABLE} is not a time",
            found=epoch,
            expected="seconds since 1970 as an integer",
            remedy=f"export {_VARIABLE}=$(git log -1 --pretty=%ct)",
        ) from problem
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
