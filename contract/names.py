"""Names that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 6


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Known names that are like one that is not known, the likeliest first."""
    plain = {each: _plain(each) for each in names}
    typed = _plain(name)
    matches = [each for each, text in plain.items() if len(typed) > 1 and typed in text]
    matches.sort(key=lambda each: plain[each] != typed)
    ratios = {each: _ratio(typed, each, text) for each, text in plain.items()}
    likely = sorted(ratios, key=lambda each: -ratios[each])
    return list(dict.fromkeys(matches + [each for each in likely if ratios[each] > 0.7]))[:_MOST]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _ratio(typed: str, name: str, plain: str) -> float:
    """Likeness to a whole name, or to one of its words."""
    words = name.lower().replace("_", "-").split("-")
    return max(difflib.SequenceMatcher(None, typed, one).ratio() for one in (plain, *words))


def did_you_mean(names: Iterable[str]) -> str:
    """A question with the names in it, or nothing."""
    listed = " or ".join(names)
    return f"did you mean {listed}?" if listed else ""
