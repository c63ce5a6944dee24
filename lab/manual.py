"""Pages that are written by the code they tell of: commands, errors, and the index of decisions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from stategate.cli.main import main
from stategate.contract import errors

DOCS = Path(__file__).parents[1] / "docs"
_BEGIN = "<!-- what follows is written by `make docs` -->\n"


def commands(group: click.Group, ctx: click.Context) -> Iterator[click.Context]:
    """Contexts of a group's commands that are shown, in their order; groups before theirs."""
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or command.hidden:
            continue
        child = click.Context(command, info_name=name, parent=ctx)
        yield child
        if isinstance(command, click.Group):
            yield from commands(command, child)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def command_page() -> str:
    """Every command with its usage, help and options, as ``--help`` says them."""
    # As a shell opens it: click remembers the names of the help option from the first context.
    top = click.Context(main, info_name="stategate", **main.context_settings)
    parts = [_fenced(main.get_help(top))]
    for ctx in commands(main, top):
        parts.append(f"\n## `{ctx.command_path}`\n\n")
        parts.append(_prose(inspect.cleandoc(ctx.command.help or "").partition("\f")[0]))
        usage = " ".join(ctx.command.collect_usage_pieces(ctx))
        parts.append(_fenced(f"Usage: {ctx.command_path} {usage}"))
        records = [p.get_help_record(ctx) for p in ctx.command.params]
        rows = [(_cell(r[0]), _cell(r[1])) for r in records if r is not None and r[1]]
        if rows:
            parts.append("\n| option | |\n|---|---|\n")
            parts += [f"| `{option}` | {text} |\n" for option, text in rows]
    return "".join(parts)


def _prose(text: str) -> str:
    """Help as Markdown: what click is asked not to wrap becomes a block of code."""
    parts = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        if lines[0] == "\b":
            parts.append(_fenced("\n".join(lines[1:])))
        else:
            parts.append(_cell(paragraph) + "\n")
    return "\n".join(parts) + "\n"


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def error_page() -> str:
    """Every class of error, what it is a kind of, and when it is raised."""
    page = ["| class | is a | raised when |\n|---|---|---|\n"]
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, Exception) and kind.__module__ == errors.__name__:
            first = re.split(r"\n\s*\n", inspect.getdoc(kind) or "")[0].replace("\n", " ")
            page.append(f"| `{name}` | `{kind.__bases__[0].__name__}` | {_cell(first)} |\n")
    return "".join(page)


def decision_page() -> str:
    """The index of docs/adr, a line a decision."""
    titles = {
        path.name: path.read_text().partition("\n")[0].partition(". ")[2]
        for path in sorted((DOCS / "adr").glob("0*.md"))
    }
    return "".join(f"* {name[:4]} [{title}]({name})\n" for name, title in titles.items())


PAGES = {
    "reference/cli.md": command_page,
    "reference/errors.md": error_page,
    "adr/README.md": decision_page,
}


def filled(name: str) -> str:
    """A page as it should be: what a person wrote above the mark, and the code's part below."""
    head = (DOCS / name).read_text().partition(_BEGIN)[0]
    return f"{head}{_BEGIN}\n{PAGES[name]()}"


@click.command()
def manual() -> None:
    """Write the pages that the code knows: commands, errors and decisions."""
    for name in PAGES:
        (DOCS / name).write_text(filled(name))
        click.echo(f"written: docs/{name}")
