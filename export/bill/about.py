"""What only people know of a model: who made it, what it is for, what it was trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from stategate.contract.errors import SpecError
from stategate.contract.records import load_record
from stategate.contract.specs import Record

NOASSERTION = "NOASSERTION"
_TERM = r"\(*[A-Za-z0-9][\w.+-]*(?::[\w.-]+)?\)*"
_EXPRESSION = re.compile(rf"{_TERM}(?: (?:AND|OR|WITH) {_TERM})*")

Url = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.-]*:[^\s<>\"]+$")]
Kwh = Annotated[float, msgspec.Meta(ge=0)]
Activity = Literal["training", "fine-tuning", "inference"]
YesNo = Literal["yes", "no"]


class Dataset(Record, frozen=True, kw_only=True):
    """Data that the model was trained or judged on."""

    name: str
    use: Literal["training", "testing"] = "training"
    description: str = ""
    url: Url | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    licence: str = NOASSERTION  # an SPDX expression
    kind: Literal["sensor", "timeseries", "audio", "image", "text", "numeric", "other"] | None = (
        None
    )
    personal: YesNo | None = None  # whether it holds sensitive personal information

    def __post_init__(self) -> None:
        """Check the licence."""
        check_licence(self.licence)


class About(Record, frozen=True, kw_only=True):
    """Facts that no bundle holds; what is left out is said as NOASSERTION, or not at all."""

    version: str | None = None
    description: str = ""
    supplier: str | None = None
    supplier_url: Url | None = None
    licence: str = NOASSERTION  # an SPDX expression
    homepage: Url | None = None
    repository: Url | None = None
    paper: Url | None = None
    download: Url | None = None
    purpose: str | None = None  # the task, such as "classification" or "locomotion control"
    application: str = ""  # how it is meant to be used
    domain: tuple[str, ...] = ()
    use_cases: tuple[str, ...] = ()
    learning: (
        Literal[
            "supervised",
            "unsupervised",
            "reinforcement-learning",
            "semi-supervised",
            "self-supervised",
        ]
        | None
    ) = None
    training: str = ""
    preprocessing: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    explainability: tuple[str, ...] = ()
    limitations: tuple[str, ...] = ()  # beside those that the bundle's own receipts name
    risks: tuple[str, ...] = ()
    risk: Literal["serious", "high", "medium", "low"] | None = None
    standards: tuple[str, ...] = ()
    personal: YesNo | None = None  # whether it uses sensitive personal information
    autonomous: YesNo | None = None  # whether it acts without a person
    energy_kwh: dict[Activity, Kwh] = {}

    def __post_init__(self) -> None:
        """Check the licence."""
        check_licence(self.licence)

    @classmethod
    def load(cls, path: str | Path) -> About:
        """Read a declaration.

        Raises:
            SpecError: It cannot be read, or says something that nobody can say.
        """
        return load_record(
            path,
            cls,
            SpecError,
            "the declaration",
            expected=f"a JSON object with some of: {', '.join(cls.__struct_fields__)}",
            remedy="correct the field that is named",
        )


def check_licence(text: str) -> None:
    """Refuse a licence that is no SPDX expression."""
    if not _EXPRESSION.fullmatch(text) or text.count("(") != text.count(")"):
        raise SpecError(
            "a licence is named by an SPDX expression",
            found=text,
            expected="such as Apache-2.0, MIT OR BSD-3-Clause, LicenseRef-house",
            remedy="https://spdx.org/licenses lists them; leave it out where nobody knows",
        )
