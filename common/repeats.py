"""Options that are given twice: refused where the second would replace the first in silence."""

from __future__ import annotations

from collections import Counter

import click


def refuse_repeats(command: click.Command, parent: click.Context, args: list[str]) -> None:
    """Refuse an option that may be given once and is there twice."""
    ctx = click.Context(command, parent=parent, info_name=command.name)
    try:
        _, _, order = command.make_parser(ctx).parse_args(list(args))
    except click.UsageError:  # the command itself says what is wrong with them
        return
    counts = Counter(param for param in order if isinstance(param, click.Option))
    for option, times in counts.items():
        same_again = option.is_flag and not option.secondary_opts
        if times > 1 and not (option.multiple or option.count or same_again):
            name = max(option.opts, key=len)
            raise click.UsageError(f"{name} is given {times} times, and only one can count", ctx)
