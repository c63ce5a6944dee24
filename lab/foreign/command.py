"""``python -m lab foreign``: every row of the list, done once for each state of the code."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from lab.evidence.pages import filled, table
from lab.foreign.attempt import Outcome, Row, attempt
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import ResultError

ROWS = Path(__file__).with_name("rows.toml")
_ROOT = Path(__file__).parents[2]
# What an outcome depends on, besides its row.
_CODE = ["cli/adopt.py", "contract", "export", "runtime"]
_CODE += [f"lab/foreign/{name}.py" for name in ("attempt", "inputs", "oracle")]
_LONGEST = 240  # characters of a reason on the page; the list of outcomes has all of it


class _Saved(msgspec.Struct, frozen=True):
    """An outcome, and the digest of the row and the code that it came from."""

    key: str
    outcome: Outcome


def rows_of(path: Path = ROWS) -> list[Row]:
    """The list.

    Raises:
        ResultError: Two rows have one name, or a row expects what another field forbids.
    """
    rows = msgspec.toml.decode(path.read_bytes(), type=dict[str, list[Row]])["row"]
    names = [row.model for row in rows]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ResultError("two rows have one name", found=", ".join(repeated))
    silent = [r.model for r in rows if not (r.adopted and r.native or r.reason)]
    if silent:
        raise ResultError(
            "a row does not say why",
            found=", ".join(silent),
            expected="words of the reason, where something is not adopted or not native",
        )
    return rows


def code_digest(root: Path = _ROOT) -> str:
    """Of the code that makes bundles and steps them."""
    digest = hashlib.sha256()
    for name in _CODE:
        place = root / name
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        for file in files:
            if file.suffix != ".pyc":
                digest.update(file.read_bytes())
    return digest.hexdigest()


def surprises(row: Row, outcome: Outcome) -> list[str]:
    """Where an outcome is otherwise than its row says."""
    differences = [
        f"{name} is {str(getattr(outcome, name)).lower()}"
        for name in ("adopted", "lifted", "native")
        if getattr(outcome, name) != getattr(row, name)
    ]
    if row.reason not in outcome.reason:
        differences.append(f"the reason is {outcome.reason!r}, without {row.reason!r}")
    if outcome.parity is not None and not outcome.parity <= row.tolerance:
        differences.append(f"parity is {outcome.parity:.1e}, and may be {row.tolerance:.0e}")
    return differences


def page_tables(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The outcomes in Markdown: those with a bundle, those without."""
    adopted = [
        [
            _file(one),
            f"`{one.options}`",
            f"{one.state_bytes:,} B",
            "yes" if one.lifted else "",
            _escaped(f"no: {one.reason}")
            if one.native_over_ort is None
            else f"{one.native_over_ort:.2f}",
            f"{one.parity:.0e}",
        ]
        for one in outcomes
        if one.adopted
    ]
    refused = [
        [_file(one), f"`{one.options}`", _escaped(one.reason)]
        for one in outcomes
        if not one.adopted
    ]
    head = ["file", "options", "state", "lifted", "native / ORT", "parity"]
    return {
        "foreign-adopted": table(head, adopted),
        "foreign-refused": table(["file", "options", "why not"], refused),
    }


def _file(one: Outcome) -> str:
    path = Path(one.file)
    # Many a file is called model.onnx: its folder says more.
    name = path.parent.name if path.stem == "model" else path.name
    return f"{one.source.replace('npm:', 'npm ')}, `{name}`: {one.what}"


def _escaped(text: str) -> str:
    text = textwrap.shorten(text, _LONGEST, placeholder=" ...")
    return text.replace("|", "\\|").replace("<", "&lt;")


@click.command("foreign")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The outcomes (.json).",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Markdown page whose table is replaced, if nothing is a surprise.",
)
@click.option("--only", multiple=True, help="Do this row alone, and write nothing; repeat.")
def foreign(folder: Path, out: Path, page: Path | None, only: tuple[str, ...]) -> None:
    """Adopt other people's files, as lab/foreign/rows.toml lists them.

    FOLDER keeps downloads, bundles and outcomes: a row that is done is not done again, unless it
    or the code has changed.

    \b
    Example:
      python -m lab foreign build/foreign --out build/bench/foreign.json
    """
    check_writable(out)
    rows, code = rows_of(), code_digest()
    if unknown := set(only) - {row.model for row in rows}:
        raise ResultError("no such row", found=", ".join(unknown))
    outcomes, wrong = [], 0
    for row in [row for row in rows if not only or row.model in only]:
        outcome = _outcome(row, folder.resolve(), code)
        outcomes.append(outcome)
        click.echo(f"{row.model}: {_line(outcome)}")
        for surprise in surprises(row, outcome):
            wrong += 1
            click.echo(f"  otherwise than expected: {surprise}")
    if only:
        return
    write_whole(out, msgspec.json.format(msgspec.json.encode(outcomes), indent=1) + b"\n")
    click.echo(f"written: {out}")
    if wrong:
        raise ResultError(
            f"{wrong} times something is otherwise than expected",
            remedy=f"mend it, or say in {ROWS.name} what is so now",
        )
    if page is not None:
        write_whole(page, filled(page.read_text(), page_tables(outcomes)).encode())


def _outcome(row: Row, folder: Path, code: str) -> Outcome:
    key = hashlib.sha256(code.encode() + msgspec.json.encode(row)).hexdigest()
    file = folder / "outcomes" / f"{row.model}.json"
    if file.exists():
        saved = msgspec.json.decode(file.read_bytes(), type=_Saved)
        if saved.key == key:
            return saved.outcome
    outcome = attempt(row, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, msgspec.json.encode(_Saved(key, outcome)))
    return outcome


def _line(outcome: Outcome) -> str:
    if not outcome.adopted:
        return f"not adopted: {outcome.reason}"
    ratio = outcome.native_over_ort
    engine = f"no native engine: {outcome.reason}" if ratio is None else f"native / ORT {ratio:.2f}"
    return f"adopted, parity {outcome.parity:.1e}, {engine}"
