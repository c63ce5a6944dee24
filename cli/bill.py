"""``stategate carry bill``: what is in a bundle, as a document for those who have to know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from stategate.cli.options import EXISTING_FILE, bundle_verb, option, out_option
from stategate.cli.show import Line, show
from stategate.contract import Bundle
from stategate.export.bill.about import About
from stategate.export.bill.write import Format, bill


@bundle_verb("bill")
@option(
    "--format",
    "form",
    type=click.Choice(["cyclonedx", "spdx"]),
    default="cyclonedx",
    help="CycloneDX 1.7 with a model card, or SPDX 3.0.1 with the AI profile; both as JSON.",
)
@out_option("The document.")
@click.option(
    "--about",
    "about_path",
    type=EXISTING_FILE,
    help="JSON with what no bundle knows: supplier, licence, purpose, data, risks; see "
    "docs/guides/carry.md. What it leaves out is said as NOASSERTION.",
)
@click.option("--licence", help="Licence of the model, an SPDX expression such as Apache-2.0.")
def bill_command(
    bundle: Path, form: Format, out: Path, about_path: Path | None, licence: str | None
) -> None:
    """Write what is in BUNDLE: model, data digests, licences, tools, metrics, limits.

    \b
    Examples:
      stategate carry bill build/policy --licence Apache-2.0 --out policy.cdx.json
      stategate carry bill build/policy --format spdx --about about.json --out policy.spdx.json
    """
    about = About.load(about_path) if about_path else About()
    if licence is not None:
        about = msgspec.structs.replace(about, licence=licence)
    opened = Bundle.open(bundle)
    raw = bill(opened, out, format=form, about=about)
    unsaid = [
        name for name in About.__struct_fields__ if getattr(about, name) == getattr(About(), name)
    ]
    record = {"path": str(out), "bundle": opened.digest, "bytes": len(raw), "unsaid": unsaid}
    show(record, _lines(record, unsaid))


def _lines(record: dict[str, object], unsaid: list[str]) -> Iterator[Line]:
    yield f"{record['path']}: {record['bytes']:,} bytes"
    if unsaid:
        yield f"nobody said: {', '.join(unsaid)}; add them to a file for --about"
