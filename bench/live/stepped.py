"""A bundle that is stepped through an episode once, as a page sees it afterwards."""

from __future__ import annotations

import itertools
from typing import Any

from stategate.contract import Episode
from stategate.runtime.episodes.run import endless
from stategate.runtime.session import Session
from stategate.runtime.watch.live import about, status
from stategate.runtime.watch.tap import Row, drawn


def stepped_data(session: Session, episode: Episode, steps: int, **more: Any) -> dict[str, Any]:
    """All that a page without a server needs: steps, figures, and the last events in detail."""
    episode.check(session.manifest.step, starts=True)
    tap, rows, count = session.tap(), list[Row](), 0
    tap.viewers += 1
    for inputs in itertools.islice(endless(session, episode), steps):
        session.step(**inputs)
        if tap.count - count >= 4096:
            latest, count = tap.since(count)
            rows += latest
    rows += tap.since(count)[0]
    facts = about(session.manifest, session.bundle_digest, session.engine_name, is_recording=True)
    shown, note = drawn(rows)
    data = {"rows": shown, "status": status(session), "moments": tap.moments()}
    return {"about": facts | note | more, **data}
