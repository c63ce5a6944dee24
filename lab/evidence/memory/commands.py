"""What a constant memory saves and what it can lose: ``python -m lab memory``."""

from __future__ import annotations

import click

from lab.evidence.memory.bound import bound_command
from lab.evidence.memory.cache import cache_command
from stategate.common.ending import CommandGroup


@click.group(cls=CommandGroup)
def memory() -> None:
    """Hold a bundle's memory against a growing cache, and against the whole history."""


memory.add_command(cache_command)
memory.add_command(bound_command)

if __name__ == "__main__":
    memory()
