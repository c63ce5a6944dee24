"""The page of one bundle, as HTML and PDF: requirements as rows, evidence beside it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from html import escape
from pathlib import Path

import msgspec

from stategate.bench.certify.case import Case, Row
from stategate.bench.certify.misra import DEVIATIONS
from stategate.bench.certify.proof import ASSUMPTIONS
from stategate.common.page import document, items, table
from stategate.contract.durable import write_whole

_LEAD = (
    "What other people's tools found out about the C of this bundle. It claims no conformance with "
    "any standard: it is what a safety engineer needs to start. A row that was not run says why, "
    "and how to run it."
)
_ASSUMED = (
    "The compiler, the C library's memcpy, memset and functions of numbers, the operating system "
    "and the CPU do what they say.",
    "The program passes pointers to objects of the declared types, steps a session from one thread "
    "at a time, and acts on no negative result.",
    "Memory of session, inputs, outputs and stack is locked and touched before the first step, "
    "as the header says at stategate_init; else a step can wait for a page.",
    "The golden episode is what the model meets: back to back, nothing but its inputs was seen.",
    "Instructions are counted; how long they take depends on caches, clocks and neighbours.",
)


class Report(msgspec.Struct, frozen=True):
    """What the page says."""

    model: str
    precision: str
    digest: str  # of the bundle
    facts: dict[str, str]
    tools: dict[str, str]  # first line of each one's version
    rows: list[Row]  # what was asked, and found
    figures: dict[str, float | int | None]  # the same as numbers
    assumptions: list[str]  # what all of it rests on
    deviations: dict[str, str]  # rules of MISRA C that are broken on purpose, and why

    @property
    def counts(self) -> str:
        """How many rows of each result, in words."""
        counts = Counter(row.result for row in self.rows)
        return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), reverse=True))

    @property
    def passed(self) -> bool:
        """Whether something was shown and no row is open; one that was not run is neither."""
        results = {row.result for row in self.rows}
        return "shown" in results and "open" not in results


def report_of(case: Case, tools: dict[str, str]) -> Report:
    """What was found of a bundle."""
    manifest = case.bundle.manifest
    native = manifest.native
    facts = {
        "bundle": case.bundle.digest,
        "graph": manifest.step_graph.file.sha256,
        "golden digest": (native.golden_digest if native else "") or "none is promised",
        "C made by": native.generator if native else "nobody",
        "operators without promised bits": ", ".join(native.inexact) if native else "",
    }
    files = {f.path: f.sha256 for f in manifest.all_files}
    if native is not None:
        facts |= {path: files[path] for path in native.sources if path in files}
    return Report(
        manifest.model.name,
        manifest.precision_words,
        case.bundle.digest,
        {name: fact for name, fact in facts.items() if fact},
        tools,
        case.rows,
        case.figures,
        [*_ASSUMED, *ASSUMPTIONS],
        DEVIATIONS,
    )


def write_report(report: Report, out: Path) -> list[Path]:
    """Record, page and, where its library is here, PDF; returns their paths."""
    record, page, pdf = (out / f"certify.{kind}" for kind in ("json", "html", "pdf"))
    write_whole(record, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    write_whole(page, html(report).encode())
    paths = [record, page]
    if importlib.util.find_spec("fpdf") is not None:
        write_whole(pdf, _pdf(report))
        paths.append(pdf)
    return paths


def _sections(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and cells of each table, for page and PDF."""
    return [
        ("Tools", ["tool", "version"], [[n, v or "not here"] for n, v in report.tools.items()]),
        ("Digests", ["what", "sha256 or fact"], [[n, v] for n, v in report.facts.items()]),
        (
            "Deviations from MISRA C:2012",
            ["rule", "why"],
            [list(d) for d in report.deviations.items()],
        ),
    ]


def html(report: Report) -> str:
    """The page: one file that loads nothing from anywhere."""
    title = f"Evidence for {report.model}, {report.precision}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{_LEAD}</p>", f"<p>{report.counts}.</p>"]
    parts.append(_rows(report.rows))
    parts += ["<h2>Assumptions</h2>", items(report.assumptions)]
    for name, head, cells in _sections(report):
        parts += [f"<h2>{name}</h2>", table(head, cells, "facts")]
    return document(title, parts)


def _rows(rows: list[Row]) -> str:
    kinds = {"shown": "passed", "open": "failed"}
    lines, last = [], ""
    for row in rows:
        links = " ".join(f'<a href="{escape(f)}">{escape(Path(f).name)}</a>' for f in row.evidence)
        requirement = "" if row.requirement == last else row.requirement
        last = row.requirement
        lines.append(
            f"<tr><td>{escape(requirement)}</td><td>{escape(row.method)}</td>"
            f'<td class="{kinds.get(row.result, "")}">{row.result}</td>'
            f"<td>{escape(row.words)} {links}</td></tr>"
        )
    head = "<tr><th>requirement</th><th>how</th><th>result</th><th>what was found</th></tr>"
    style = (
        "<style>.rows td, .rows th { text-align: left; vertical-align: top; white-space: normal;"
        " overflow-wrap: anywhere; min-width: 5rem; }"
        # In a narrow window cells stand below one another, and a result is never out of sight.
        " @media (max-width: 700px) { .rows th { display: none; }"
        " .rows td { display: block; border: 0; padding: 0.1rem 0; }"
        " .rows td:empty { display: none; } .rows td:last-child { padding-bottom: 1rem; } }"
        "</style>"
    )
    return f'{style}<div class="wide"><table class="rows">{head}{"".join(lines)}</table></div>'


def _pdf(report: Report) -> bytes:
    """The same on paper; its bytes depend on the record alone."""
    from datetime import datetime, timezone

    import matplotlib
    from fpdf import FPDF

    pdf = FPDF(orientation="landscape", format="A4")
    pdf.set_creation_date(datetime.fromtimestamp(0, timezone.utc))
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    for style, name in (("", "DejaVuSans"), ("B", "DejaVuSans-Bold")):
        pdf.add_font("text", style, fonts / f"{name}.ttf")
    pdf.add_page()

    def line(text: str, size: int, style: str = "") -> None:
        pdf.set_font("text", style, size)
        pdf.multi_cell(0, None, text, new_x="LMARGIN", new_y="NEXT")
        pdf.ln(2)

    def grid(head: list[str], cells: list[list[str]], widths: tuple[int, ...]) -> None:
        pdf.set_font("text", "", 7)
        with pdf.table(col_widths=widths, text_align="LEFT", line_height=3.6, padding=0.6) as drawn:
            for row in [head, *cells]:
                drawn.row(row)
        pdf.ln(3)

    line(f"Evidence for {report.model}, {report.precision}", 16, "B")
    line(f"{_LEAD}\n{report.counts}.", 9)
    rows = [
        [r.requirement, r.method, r.result, " ".join([r.words, *r.evidence])] for r in report.rows
    ]
    grid(["requirement", "how", "result", "what was found, and evidence"], rows, (22, 26, 8, 44))
    line("Assumptions", 12, "B")
    line("\n".join(f"- {text}" for text in report.assumptions), 8)
    for name, head, cells in _sections(report):
        line(name, 12, "B")
        grid(head, cells, (30, 70))
    return bytes(pdf.output())
