"""Words that a stranger trips over: names that name nothing, and phrases that mislead."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
INSTALLED = (
    *("stategate", "cli", "export", "calibration", "bench", "runtime"),
    *("models", "targets", "common", "contract"),
)
OUTSIDE = ("lab", "scripts", "tests", "docs")

# Participles and adverbs that stand where a noun should. As a whole name they say nothing.
EMPTY_NAMES = set(
    [
        "told",
        "found",
        "given",
        "seen",
        "kept",
        "wanted",
        "ours",
        "theirs",
        "mine",
        "made",
        "taken",
        "here",
        "there",
        "over",
        "beside",
        "asked",
        "said",
        "known",
        "left",
        "held",
        "meant",
        "handed",
        "spoken",
        "gone",
    ]
)
# These say nothing at the end of a longer name either; the first two do so anywhere in one.
NOWHERE = {"told", "ours"}
NOT_LAST = {"told", "ours", "here", "there", "over", "beside", "alone", "apart", "aside"}
# With its partner in the same scope such a name is a plain word of a pair.
PARTNERS = {"left": "right", "found": "expected"}

PHRASES = re.compile(
    r"\btold\b|\bours\b|\bin (?:its|their) way\b|\bnobody counts\b"
    r"|\bcannot be(?=\W*(?:$|\n|found\b))",
    re.IGNORECASE,
)


class Word(NamedTuple):
    """A place where the dialect stands."""

    path: str
    line: int
    kind: str
    text: str


def trips(name: str, is_test: bool = False) -> bool:
    """Whether a reader trips over ``name``; names of tests are sentences and may say more."""
    parts = [part for part in name.lower().split("_") if part]
    if not parts:
        return False
    if NOWHERE & set(parts):
        return True
    return not is_test and ((len(parts) == 1 and parts[0] in EMPTY_NAMES) or parts[-1] in NOT_LAST)


def _names(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Each name that ``tree`` binds, with its line and its kind."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno, "name"
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno, "attribute"
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno, "parameter"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, "test" if node.name.startswith("test_") else "function"
        elif isinstance(node, ast.ClassDef):
            yield node.name, node.lineno, "class"


def _scopes(tree: ast.AST) -> Iterator[tuple[int, int, set[str]]]:
    """First line, last line and bound names of each function and class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.end_lineno or node.lineno, {n for n, _, _ in _names(node)}


def _phrases(text: str, first_line: int) -> Iterator[tuple[int, str]]:
    for match in PHRASES.finditer(text):
        yield first_line + text.count("\n", 0, match.start()), " ".join(match.group().split())


def words_of_python(path: Path) -> Iterator[Word]:
    """Names, string literals and comments of a Python file that hold the dialect."""
    source = path.read_text()
    where = path.relative_to(ROOT).as_posix()
    tree = ast.parse(source)
    scopes = list(_scopes(tree))
    if trips(path.stem, path.stem.startswith("test_")):
        yield Word(where, 1, "module", path.stem)
    for name, line, kind in _names(tree):
        partner = PARTNERS.get(name)
        if partner and any(a <= line <= b and partner in names for a, b, names in scopes):
            continue
        if trips(name, kind == "test"):
            yield Word(where, line, kind, name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for line, phrase in _phrases(node.value, node.lineno):
                yield Word(where, line, "text", phrase)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            for line, phrase in _phrases(token.string, token.start[0]):
                yield Word(where, line, "comment", phrase)


def words_of_text(path: Path) -> Iterator[Word]:
    """Phrases of the dialect in a page."""
    where = path.relative_to(ROOT).as_posix()
    for line, phrase in _phrases(path.read_text(), 1):
        yield Word(where, line, "page", phrase)


def words_of_room(room: str) -> list[Word]:
    """The dialect of a root folder, in the order of files and lines."""
    words: list[Word] = []
    for path in sorted((ROOT / room).rglob("*.py")):
        # The two files that list these words.
        if path.name not in ("words.py", "test_words.py"):
            words += words_of_python(path)
    pages = sorted((ROOT / room).rglob("*.md"))
    if room == "docs":
        pages += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        words += words_of_text(page)
    return sorted(words)
