"""The skeleton of every HTML page: one self-contained file, light and dark, readable on a phone.

Plots are drawn in placeholder colours that become CSS variables, so that one SVG suits both.
matplotlib itself is imported by the rooms that draw; here its SVG is only text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from stategate.contract.reading import printable

# Placeholders: the n-th colour that a plot may use for a series, and ink and grid.
SERIES = ("#030303", "#040404", "#050505", "#060606", "#070707")
INK, GRID = "#010101", "#020202"
# Half of a desktop's page, and all of a phone's: text keeps its size on both.
PLOT_INCHES = (4.8, 3.2)

_VARIABLES = {INK: "ink", GRID: "grid"} | {c: f"series-{i}" for i, c in enumerate(SERIES)}
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1c; --grid: #d4d4d4;
  --series-0: #1b6ca8; --series-1: #c8553d; --series-2: #2a7f62; --series-3: #8a5a00;
  --series-4: #7b4fa3; --shade: #0000004d; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e6e6; --grid: #3c4046;
  --series-0: #6cb4ee; --series-1: #f08a70; --series-2: #67c29c; --series-3: #e0b354;
  --series-4: #c3a1e8; --shade: #ffffff40; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 64rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
/* What a narrow window hides of a table throws a shadow; at either end paper lies over it. */
.wide { overflow-x: auto; margin: 1rem 0; background:
  linear-gradient(to right, var(--paper) 1.5rem, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 1.5rem, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1.2rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1.2rem 100% no-repeat scroll; }
ul.verdicts { list-style: none; padding: 0; } ul.verdicts li { margin: .3rem 0; }
section + section { border-top: 2px solid var(--grid); margin-top: 3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--grid); text-align: right; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
table.facts td { text-align: left; vertical-align: top; }
table.facts td + td { overflow-wrap: anywhere; white-space: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; } figure { margin: 0; }
svg { width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.failed { color: var(--series-1); } .passed { color: var(--series-2); }
"""


def _text(text: str) -> str:
    """What a name from a file may be shown as: no markup, and no turn of direction."""
    return escape(printable(text, 10_000))


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


class Verdict(NamedTuple):
    """What a page says first."""

    subject: str  # what is judged
    passed: bool | None  # None where nothing was held against a limit
    words: str  # the figures behind it


class Part(NamedTuple):
    """One result on a page of one or several."""

    title: str
    verdicts: Sequence[Verdict]
    body: Sequence[str]  # HTML


def report(title: str, parts: Sequence[Part]) -> str:
    """A whole page: verdicts first, then each result."""
    title = printable(title)
    if len(parts) == 1:
        (part,) = parts
        return document(title, [f"<h1>{_text(title)}</h1>", _verdicts(part.verdicts), *part.body])
    lines = [f"<h1>{_text(title)}</h1>"]
    for i, part in enumerate(parts):
        lines.append(f'<p><a href="#part-{i}">{_text(printable(part.title))}</a></p>')
        lines.append(_verdicts(part.verdicts))
    for i, part in enumerate(parts):
        lines.append(f'<section id="part-{i}"><h1>{_text(printable(part.title))}</h1>')
        lines += [*part.body, "</section>"]
    return document(title, lines)


def _verdicts(verdicts: Iterable[Verdict]) -> str:
    kinds = {True: "passed", False: "failed", None: "measured"}
    lines = [
        f'<li><b class="{kinds[v.passed]}">{kinds[v.passed]}</b> '
        f"<b>{_text(printable(v.subject))}</b>: {_text(v.words)}</li>"
        for v in verdicts
    ]
    return f'<ul class="verdicts">{"".join(lines)}</ul>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways where it is too wide; without a head if that is empty."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = (line("th", head) if head else "") + "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def items(texts: Iterable[str]) -> str:
    """A list, or nothing."""
    body = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f"<ul>{body}</ul>" if body else ""


def plots(figures: Iterable[str]) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="plots">{"".join(figures)}</div>'


def plot_style(title: str) -> dict[str, Any]:
    """What matplotlib's ``rc_context`` is given for a plot."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
        "grid.color": GRID,
        "axes.grid": True,
        "figure.figsize": PLOT_INCHES,
        "figure.constrained_layout.use": True,
        "savefig.transparent": True,
        "legend.frameon": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "text.parse_math": False,  # a name with two dollars is no formula
        "axes.formatter.min_exponent": 8,  # 0.01 and 1000 rather than powers of ten
    }


def themed_svg(figure: Any, title: str) -> str:
    """Matplotlib's figure as SVG that follows light and dark; its bytes depend on that alone."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names of groups repeat from plot to plot
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return f'<figure role="img" aria-label="{_text(title)}">{svg}</figure>'
