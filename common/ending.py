"""How a command ends: an exit code and a sentence for errors, signals, closed pipes and full disks.

Exit codes: 0 done, 1 it ran and the answer is no, 2 wrong use or a machine that refuses, 70 a bug
with its traceback, 128 + n ended by signal n (130 Ctrl-C, 143 SIGTERM, 141 nobody reads the output
any more).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from tempfile import gettempdir
from traceback import print_exception, walk_tb
from types import FrameType
from typing import Any

import click

from stategate.contract.errors import StateFault, StategateError
from stategate.contract.names import close_names, did_you_mean

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BUG = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would be an answer
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TIGHT = 1 << 20  # bytes
_OUT_OF_RANGE = (
    "it was checked over fewer steps, or on other inputs, than it was given here: export or adopt "
    "it again with more --steps and recorded inputs (--episode), and see in which step it fails"
)
_ROOM = "make room there (df -h shows which disk is full), then give the command again"

Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end.

    Like KeyboardInterrupt it passes every ``except Exception``.

    Attributes:
        number: Of the signal.
        remains: What is left of the work, once somebody has said so.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.remains = ""
        super().__init__(f"stopped by {signal.Signals(number).name}")


class _Hidden(Exception):
    """What click would answer itself: a closed pipe with exit code 1, an interrupt with a line."""


@contextmanager
def _hidden_from_click() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, KeyboardInterrupt) as problem:
        raise _Hidden from problem


class CommandGroup(click.Group):
    """The group of all commands: whatever ends one becomes a sentence and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in standalone mode this never returns, as in click."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        with _handled(_stop):
            try:
                code = super().main(args, prog_name, complete_var, False, **extra)
                click.echo(nl=False)  # flushes, and fails here where what was printed cannot go
            except BaseException as problem:
                code = exit_code_of(problem)
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the group's own arguments, among them ``--help``."""
        with _hidden_from_click():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        from stategate.common.console import notes_on_stderr  # which imports this module

        with _hidden_from_click(), notes_on_stderr():
            return super().invoke(ctx)

    def names(self, ctx: click.Context) -> list[str]:
        """Every name that a command goes by."""
        return self.list_commands(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, and refuse an option of it that is given twice and counts once."""
        names = self.names(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            question = did_you_mean(close_names(args[0], names))
            ctx.fail(f"No such command {args[0]!r}{question and f'; {question}'}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            refuse_repeats(command, ctx, rest)
        return name, command, rest


def exit_code_of(problem: BaseException) -> int:
    """Say why a command ended, in a sentence on stderr, and with which code it exits."""
    match problem:
        case click.ClickException():
            problem.show()
            return problem.exit_code
        case StateFault():  # its own remedy is for a program that steps on
            fault = str(problem).partition("\n  what to do: ")[0]
            _say(f"{type(problem).__name__}: {fault}\n  what to do: {_OUT_OF_RANGE}")
            return problem.exit_code
        case StategateError():
            _say(f"{type(problem).__name__}: {problem}")
            return problem.exit_code
        case Stopped():
            _say(f"{problem}{problem.remains and f': {problem.remains}'}")
            return 128 + problem.number
        case KeyboardInterrupt():
            _say("stopped by SIGINT")
            return 128 + signal.SIGINT
        case click.Abort():  # click's prompts turn every signal and the end of input into this
            stopped = problem.__context__
            if isinstance(stopped, KeyboardInterrupt):
                return exit_code_of(stopped)
            _say("nothing was answered")
            return 2
        case _Hidden() if problem.__cause__ is not None:
            return exit_code_of(problem.__cause__)
        case OSError():
            return _of_the_system(problem)
        case SystemExit():
            raise problem
    print_exception(problem)
    return _BUG


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may read the errors either
        click.echo(text, err=True)


def _of_the_system(problem: OSError) -> int:
    where = problem.filename
    frames = [frame for frame, _ in walk_tb(problem.__traceback__)]
    if where is None and frames[-1].f_code is click.echo.__code__:
        if sys.__stdout__ is not None:  # or Python complains once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        if problem.errno == errno.EPIPE:  # `| head -1` has read enough
            return 128 + signal.SIGPIPE
        where = "what is printed"
    reason = problem.strerror or str(problem)
    if isinstance(problem, shutil.Error):  # a list of copies that failed; one will do
        _, where, reason = problem.args[0][0]
    _say(f"{type(problem).__name__}: {'' if where is None else f'{where}: '}{reason}")
    if problem.errno in _NO_ROOM or os.strerror(errno.ENOSPC) in reason:
        if where is None and shutil.disk_usage(gettempdir()).free < _TIGHT:
            _say(f"  found: next to no room in {gettempdir()}, where temporary files go")
        _say(f"  what to do: {_ROOM}")
    return 2


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Have one function answer the signals that end a command, but those that are ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class StopRequest:
    """The signal that asked for an end, if one did."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def stopped(self, remains: str) -> Stopped:
        """What a command raises once it has put everything away."""
        problem = Stopped(self.number)
        problem.remains = remains
        return problem


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Work that ends between two steps: the first signal is only noted, the second one raises.

    Yields:
        What is true once a signal has asked for an end.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request:
            _stop(number, frame)
        request.number = number

    with _handled(note):
        yield request


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
