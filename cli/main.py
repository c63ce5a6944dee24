"""The ``stategate`` command: a table of verbs whose modules are imported when they are used.

The table is the only tie between rooms on the command line: strings, so that ``inspect`` and
``run`` work where torch and onnx were never installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from stategate.common.ending import CommandGroup
from stategate.contract.errors import MissingDependencyError
from stategate.contract.names import close_names


class Verb(NamedTuple):
    """Where a verb is, and what is said of it before it is imported."""

    place: str  # module:attribute below stategate.cli; the module alone where both have one name
    extra: str  # of pip, that brings what it needs
    line: str  # for the list of verbs


class Group(NamedTuple):
    """Verbs of one kind, and the one that is meant where none is named."""

    line: str
    verbs: Mapping[str, Verb]
    default: str | None = None
    old: Mapping[str, Verb] = {}  # names from before, which go on working


def _verbs(table: str) -> dict[str, Verb]:
    rows = (map(str.strip, row.split("|")) for row in table.strip().splitlines())
    return {name: Verb(*rest) for name, *rest in rows}


_MAKE = _verbs("""
export | export | export | Make a bundle from a torch module.
adopt | adopt | export | Make a bundle from an ONNX file that carries its own state.
calibrate | calibrate | export | Choose a gate's threshold by closed-loop episodes.
wrap | wrap | export | Give a frozen policy a memory, trained on its recordings.
quantise | export:quantise | export | Make a bundle in lower precision, ranges and all.
""")
_PROVE = _verbs("""
drift | drift | bench | Compare a candidate with its float model over many steps.
verify | device:verify | ort | Check a bundle's digests, and its behaviour on this machine.
fits | fits | export | Say whether a bundle or model fits a device, and why.
certify | certify | bench | Ask compilers, checkers and provers about a bundle's C.
sign | sign | trust | Sign a bundle as its author.
inspect | device:inspect | ort | Show what a bundle promises.
""")
_RUN = _verbs("""
run | run | ort | Step a bundle through an episode and count its writes.
replay | replay | ort | Step again what a black box recorded.
watch | watch | watch | Show a memory as it works, in a browser.
report | report | bench | Draw runs and results as one page.
""")
_DOCTOR = _verbs("""
doctor | targets:doctor | ort | Say what this machine lacks for an engine, with remedies.
""")
_MODEL = _verbs("""
list | zoo | export | List the models that come with stategate.
ranges | calibrate:ranges | export | Measure how large a bundle's tensors become in closed loop.
sensitivity | sensitivity | export | Propose a precision plan within bounds of error and flips.
health | calibrate:health | ort | Learn what a bundle meets, to notice when a stream leaves it.
recalibrate | calibrate:recalibrate | export | Find a threshold that decides like the float bundle.
""")
_EPISODES = _verbs("""
show | record:episodes | ort | Say what is in recorded episodes.
read | record:read_recording | recordings | Write a recording as episodes.
write | record:write_recording | recordings | Write a run as MCAP, LeRobotDataset or Parquet.
zoo | zoo:episode | export | Write a held-out episode of a zoo model.
wav | record:episode_wav | ort | Cut sound into episodes.
gym | record:episode_gym | gym | Write what an expert sees in a Gymnasium environment.
record | record | ort | Step a bundle and record what it is given.
""")
_BENCH = _verbs("""
run | bench:run | bench | Measure bundles on this machine.
compare | bench:compare_command | bench | Tell whether one is slower.
""")
_DEVICE = _verbs("""
targets | targets | export | List the devices that are known, each figure with its source.
detect | targets:detect_command | export | Say what this machine is, and what no file says.
build-engine | build_engine | tensorrt | Build a bundle's TensorRT engine on this device.
build-native | build_native:command | ort | Compile a bundle's C source into a library.
trust | sign:trust | ort | Accept a bundle's native code, once.
retarget | fits:retarget_command | export | Write bundles again for another device.
wear | wear | ort | Show how long the flash lasts under each snapshot policy.
""")
_INSTALL = _verbs("""
bundle | install:bundle | ort | Put a bundle beside the one that runs.
confirm | install:confirm_command | ort | Let the bundle on trial stay.
go-back | install:go_back_command | ort | Run the bundle from before.
status | install:status_command | ort | Say which bundle runs, and why.
release | install:release_command | ort | Give a bundle a release number and a migration.
""")
_FLEET = _verbs("""
deploy | deploy | ort | Put a bundle on a machine over ssh, and try it there.
collect | fleet:collect | fleet | Read what robots brought home into one table.
show | fleet:show_command | fleet | Say which robots need a look.
episodes | fleet:episodes_command | fleet | Make episodes of black boxes.
""")
_CARRY = _verbs("""
bill | bill:bill_command | | Say what is in a bundle: CycloneDX or SPDX.
push | push:push_command | carry | Put a bundle into a registry.
pull | push:pull_command | carry | Take a bundle out of a registry.
""")
_COMPLETION = _verbs("""
completion | completion | | Print what completes verbs and options in a shell.
""")
GROUPS = {
    "install": Group("Put updates on a device that can be taken back.", _INSTALL, "bundle"),
    "fleet": Group("Many robots: bundles go out, ledgers come home.", _FLEET),
    "carry": Group("Bills of materials, and bundles in a registry.", _CARRY),
    "model": Group("Models of the zoo, and numbers that export applies.", _MODEL),
    "episodes": Group(
        "Recorded inputs: make them, record them, look into them.", _EPISODES, "show"
    ),
    "bench": Group(
        "Measure bundles: step times, tails, memory, energy.",
        _BENCH,
        "run",
        {"report": _RUN["report"]},
    ),
    "device": Group("Targets, and what is compiled for one.", _DEVICE),
}
SECTIONS: dict[str, dict[str, Verb | Group]] = {
    "Make a bundle": {**_MAKE},
    "Prove it": {**_PROVE},
    "Run it": {**_RUN, "bench": GROUPS["bench"]},
    "On the device": _DOCTOR | {name: GROUPS[name] for name in ("install", "fleet", "device")},
    "More": {name: GROUPS[name] for name in ("carry", "model", "episodes")} | _COMPLETION,
}
# Names from before there were groups, which go on working.
OLD = {
    **{name: verb for name, verb in _MODEL.items() if name not in ("list", "health")},
    **_DEVICE,
    **_CARRY,
    "zoo": _MODEL["list"],
    "episode": _EPISODES["zoo"],
    "episode-wav": _EPISODES["wav"],
    "episode-gym": _EPISODES["gym"],
    "record": _EPISODES["record"],
    "deploy": _FLEET["deploy"],
}


class LazyGroup(CommandGroup):
    """A group that imports a verb's module when the verb is used, and not for ``--help``."""

    def __init__(
        self,
        name: str | None = None,
        sections: Mapping[str, Mapping[str, Verb | Group]] | None = None,
        hidden: Mapping[str, Verb | Group] | None = None,
        default: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self._sections = sections or {}
        self._shown = {n: v for verbs in self._sections.values() for n, v in verbs.items()}
        self._all = {**(hidden or {}), **self._shown}
        self.default = default

    def names(self, ctx: click.Context) -> list[str]:
        """Those that help lists, and old ones."""
        return list(self._all)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of work."""
        return list(self._shown)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one verb."""
        entry = self._all.get(cmd_name)
        if isinstance(entry, Group):
            text = entry.line if entry.default is None else f"{entry.line}\n\n{_DEFAULT}"
            shown = {"Commands": entry.verbs}
            return LazyGroup(
                cmd_name,
                shown,
                entry.old,
                default=entry.default,
                help=text.format(group=cmd_name, default=entry.default) + _example(cmd_name, entry),
                short_help=entry.line,
            )
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        home = importlib.import_module(f"stategate.cli.{module}")
        command: click.Command = getattr(home, attribute or module)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb, an old name of one, or the default."""
        if self.default is not None and args[0] not in self._all:
            # What is like a verb and no file is a mistyped verb.
            like = close_names(args[0], self._all) and not Path(args[0]).exists()
            args = args if like else [self.default, *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options of the default verb may come first; the group itself has --help alone."""
        options = self.default is not None and args and args[0].startswith("-")
        if options and args[0] not in ctx.help_option_names:
            args = [str(self.default), *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; its body imports what the verb needs, and its options need nothing.

        Raises:
            MissingDependencyError: A library of the verb's extra is not installed.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as missing:
            entry = self._all.get(ctx.invoked_subcommand or "")
            if not isinstance(entry, Verb) or (missing.name or "").startswith("stategate"):
                raise
            raise MissingDependencyError(missing.name or "a library", entry.extra) from missing

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lists of verbs, from the table alone."""
        for section, verbs in self._sections.items():
            with formatter.section(section):
                formatter.write_dl([(name, verb.line) for name, verb in verbs.items()])


_DEFAULT = "`{group} ...` is short for `{group} {default} ...`."


def _example(name: str, group: Group) -> str:
    verb = next(iter(group.verbs))
    return f"\n\n\b\nExample:\n  stategate {name} {verb} --help"


def every_verb(
    group: click.Group, ctx: click.Context | None = None, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The words and the command of each verb that help lists, groups before what they hold."""
    ctx = ctx or click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from every_verb(command, ctx, (*words, name))


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    hidden=OLD,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="stategate")
def main() -> None:
    """Ship models whose memory never grows.

    A model with a constant-size gated memory goes in; a verified bundle comes out; a small runtime
    steps it for ever and counts every write.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate verify build/aura
      stategate run build/aura --steps 10000

    Exit codes: 0 done, 1 it ran and the answer is no, 2 wrong use, 128 + n ended by signal n.
    """
