"""``stategate certify``: what other people's tools say of a bundle's C."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from stategate.bench.certify.report import Report
from stategate.bench.certify.run import certify as certify_bundle
from stategate.cli.options import COUNT, FOLDER, POSITIVE, bundle_verb, flag, option
from stategate.cli.show import Line, leave_unless, show
from stategate.common.console import progress


@bundle_verb("certify")
@option("--out", type=FOLDER, required=True, help="Folder of page, PDF, record and evidence.")
@option("--steps", type=COUNT, default=100_000, help="Of the comparison of model and code.")
@option("--limit-s", type=POSITIVE, default=900.0, help="Seconds of one tool.")
@option(
    "--eva-precision",
    type=click.IntRange(0, 11),
    default=2,
    help="Of Frama-C; more is slower and has fewer false alarms.",
)
@flag("--quick", "Leave out what takes minutes.", "is_quick")
def certify(bundle: Path, out: Path, **settings: Any) -> None:
    """Ask every tool that is here about the C of BUNDLE, and write what they say.

    It claims no conformance with a standard. A tool that is missing is a row that says so, and how
    to install it. Exits with 1 where a row is open.

    \b
    Examples:
      stategate certify build/policy --out build/policy-evidence
      stategate certify build/policy --quick --steps 1000 --out build/policy-evidence
    """
    with progress(8, "certifying") as report:
        finding = certify_bundle(bundle, out, report=report, **settings)
    show(finding, _lines(finding, out))
    leave_unless(finding.passed)


def _lines(finding: Report, out: Path) -> Iterator[Line]:
    for row in finding.rows:
        if row.result != "shown":
            yield f"{row.result}: {row.requirement} ({row.method}): {row.words}"
    yield f"{out / 'certify.html'}: {finding.counts}"
