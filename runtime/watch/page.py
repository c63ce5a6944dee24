"""The page that is alive, as one piece of HTML: served with a session, or filled in a report."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path

from stategate.common.page import document

_SCRIPT, _END, _DATA = "<script>", "</script>", "<!-- given -->"


@lru_cache(maxsize=1)
def _part() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def live_page() -> str:
    """The page that asks its server for everything."""
    return document("stategate watch", [_part()])


def script_hash() -> str:
    """What a content security policy calls the page's one script."""
    part = _part()
    script = part[part.rindex(_SCRIPT) + len(_SCRIPT) : part.rindex(_END)]
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def part_with(data: str) -> str:
    """The part of a page that shows what is given to it; ``data`` is of `server.encoded`."""
    block = f'<script type="application/json" id="given">{data}{_END}'
    return _part().replace(_DATA, block)
