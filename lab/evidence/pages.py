"""Remake the pages' tables and pictures from the results: ``python -m lab pages``.

A maker gives pieces of Markdown and pictures by name; a piece goes between the markers of its name,
and everything outside of markers is left as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stategate.common.ending import CommandGroup
from stategate.contract.durable import write_whole
from stategate.contract.errors import SpecError

COLOURS = ("#1b6ca8", "#c8553d", "#2a7f62", "#8a5a00", "#7b4fa3", "#555555", "#b0417a", "#3c8f9a")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stategate",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d4d4d4",
    "figure.figsize": (7.2, 4.0),
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
}


class Contents(NamedTuple):
    """What one maker gives.

    Attributes:
        pieces: Markdown by the name of its markers.
        pictures: How to draw each picture, by file name without suffix: its title, and the rest.
    """

    pieces: Mapping[str, str]
    pictures: Mapping[str, tuple[str, Callable[[Axes], None]]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def filled(page: str, pieces: Mapping[str, str]) -> str:
    """The page with each piece between its markers.

    Raises:
        SpecError: A piece has no place, or more than one.
    """
    for name, piece in pieces.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        if page.count(begin) != 1 or page.count(end) != 1 or end not in rest:
            raise SpecError("the page has no place for a table", expected=f"{begin}, {end}, once")
        page = f"{before}{begin}\n\n{piece}\n\n{end}{after}"
    return page


def make(page: Path, contents: Contents, images: Path) -> None:
    """Fill a page and draw its pictures, whose bytes depend on the results alone.

    Raises:
        SpecError: As `filled` does.
    """
    write_whole(page, filled(page.read_text(), contents.pieces).encode())
    images.mkdir(parents=True, exist_ok=True)
    for name, (title, draw) in contents.pictures.items():
        with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
            figure = Figure()
            axes = figure.subplots()
            draw(axes)
            axes.set_title(title)
            figure.savefig(images / f"{name}.svg", metadata={"Date": None})


@click.group(cls=CommandGroup, invoke_without_command=True)
def pages() -> None:
    """Remake tables and pictures of index.md, controlled.md and wrap.md in docs/evidence."""
    from lab.evidence.controlled import page, story
    from lab.evidence.memory.page import of_bound, of_cache
    from lab.evidence.wrap import page as wrap_page

    results = Path("docs/evidence")
    controlled, values = results / "controlled.json", results / "values.json"
    for name, contents in (
        ("index.md", story.contents(controlled, values)),
        ("index.md", of_cache(results / "cache.json")),
        ("controlled.md", page.contents(controlled, values)),
        ("controlled.md", of_bound(results / "bound.json")),
        ("wrap.md", wrap_page.contents(results / "wrap.json")),
    ):
        make(results / name, contents, Path("docs/images"))


if __name__ == "__main__":
    pages()
