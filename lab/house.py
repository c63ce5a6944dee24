"""The house in figures: how long it is, what it loads, and how plainly it speaks.

``make house`` prints them and writes ``build/bench/house.json``; ``python -m lab.house --words``
lists the words that a stranger trips over by file and line.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

from lab.words import INSTALLED, OUTSIDE, ROOT, words_of_room

PROCESSES = 5

# What NumPy and msgspec load is theirs; times are CPU time, for a busy machine would spoil others.
# Modules come from bytecode, as pip leaves it: the first process compiles and is not counted.
IMPORT = """
import json, sys, time
import numpy, msgspec
before = set(sys.modules)
start = time.process_time()
{statement}
seconds = time.process_time() - start
print(json.dumps([seconds * 1e3, sorted(set(sys.modules) - before)]))
"""
HELP = """
import contextlib, io
from stategate.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["--help"], standalone_mode=False)
"""
BUNDLE = """
import contextlib, io
from stategate.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(["export", {source!r}, "--out", {out!r}], standalone_mode=False)
"""
# What a stranger would bring: twenty lines.
MODULE = '''
import torch
from torch import nn


class Follower(nn.Module):
    """Follows its input where a gate lets it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 1)

    def forward(self, x, h):
        g = torch.sigmoid(self.gate(x))
        h = (1 - g) * h + g * torch.tanh(self.cell(x) + h)
        return h, h


def follower():
    from stategate.models import lift

    return lift(Follower(), {"x": torch.zeros(1, 8)}, hidden={"h": torch.zeros(1, 8)})
'''


def measure(statement: str) -> tuple[float, list[str]]:
    """Middle milliseconds of CPU time of ``statement`` in fresh processes, and what it loads."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        runs = []
        for _ in range(1 + PROCESSES):
            process = subprocess.run(
                [sys.executable, "-c", IMPORT.format(statement=statement)],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
            runs.append(json.loads(process.stdout.splitlines()[-1]))
    return round(statistics.median(run[0] for run in runs[1:]), 1), runs[-1][1]


def modules_for_a_bundle() -> dict[str, int]:
    """How many modules a process loads that makes a bundle of ``MODULE``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "follower.py")
        source.write_text(MODULE)
        statement = BUNDLE.format(source=f"{source}:follower", out=f"{folder}/bundle")
        process = subprocess.run(
            [sys.executable, "-c", IMPORT.format(statement=statement)],
            capture_output=True,
            text=True,
        )
    if process.returncode:
        sys.exit(f"no bundle of twenty lines: {process.stderr[-2000:]}")
    names = json.loads(process.stdout.splitlines()[-1])[1]
    own = sum(name.partition(".")[0] == "stategate" for name in names)
    return {"stategate": own, "all": len(names)}


def files_of(room: str) -> list[Path]:
    """The Python files of a root folder."""
    return sorted((ROOT / room).rglob("*.py"))


def comment_lines(source: str) -> int:
    """How many lines of ``source`` carry a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def error_classes(files: list[Path]) -> list[str]:
    """Names of classes that end in ``Error`` or derive from one that does."""
    return sorted(
        node.name
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(
            name.endswith(("Error", "Exception"))
            for name in (node.name, *(ast.unparse(base) for base in node.bases))
        )
    )


def architecture_exceptions() -> int:
    """Entries of the tables of exceptions in the architecture test."""
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text())
    return sum(
        len(node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict | ast.Set | ast.Tuple | ast.List)
        and ast.unparse(node.targets[0]).endswith("EXCEPTIONS")
    )


def figures() -> dict[str, object]:
    """Every figure, by name."""
    files = {room: files_of(room) for room in INSTALLED}
    everything = [path for room in files.values() for path in room]
    lines = {path: len(path.read_text().splitlines()) for path in everything}
    total = sum(lines.values())
    comments = sum(comment_lines(path.read_text()) for path in everything)
    front_ms, front = measure("import stategate")
    runtime_ms, runtime = measure("import stategate.runtime")
    help_ms, _ = measure(HELP)
    errors = error_classes(everything)
    return {
        "installed lines": total,
        "lines by room": {room: sum(lines[p] for p in paths) for room, paths in files.items()},
        "installed files": len(everything),
        "files over 400 lines": sum(count > 400 for count in lines.values()),
        "comment share, percent": round(100 * comments / total, 2),
        "error classes": len(errors),
        "exceptions of the architecture": architecture_exceptions(),
        "modules of import stategate": len(front),
        "import stategate, ms of CPU": front_ms,
        "modules of import stategate.runtime": len(runtime),
        "import stategate.runtime, ms of CPU": runtime_ms,
        "stategate --help, ms of CPU": help_ms,
        "modules for a bundle of twenty lines": modules_for_a_bundle(),
        "words of the dialect": {room: len(words_of_room(room)) for room in (*INSTALLED, *OUTSIDE)},
    }


def main() -> None:
    """Print the figures and write them, or list the words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--words", action="store_true", help="list words by file and line")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench/house.json")
    options = parser.parse_args()
    if options.words:
        for room in (*INSTALLED, *OUTSIDE):
            for word in words_of_room(room):
                print(f"{word.path}:{word.line}: {word.kind} {word.text}")
        return
    result = figures()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name:38} {sum(value.values()) if 'all' not in value else value['all']:>7}")
            for part, count in value.items():
                print(f"    {part:34} {count:>7}")
        else:
            print(f"{name:38} {value:>7}")


if __name__ == "__main__":
    main()
