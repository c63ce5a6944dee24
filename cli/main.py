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

    place: str  # module:attribute below stategate.cli
    extra: str  # of pip, that brings what it needs
    line: str  # for the list of verbs
    old: str = ""  # its name before there were groups, which goes on working


class Group(NamedTuple):
    """Verbs of one kind, and the one that is meant where none is named."""

    line: str
    verbs: Mapping[str, Verb]
    default: str | None = None


FIRST_SCREEN: dict[str, dict[str, Verb]] = {
    "Make a bundle": {
        "export": Verb("export:export", "export", "Make a bundle from a torch module."),
        "adopt": Verb(
            "adopt:adopt", "export", "Make a bundle from an ONNX file that carries its own state."
        ),
        "calibrate": Verb(
            "calibrate:calibrate", "export", "Choose a gate's threshold by closed-loop episodes."
        ),
        "wrap": Verb(
            "wrap:wrap", "export", "Give a frozen policy a memory, trained on its recordings."
        ),
        "quantise": Verb(
            "export:quantise", "export", "Make a bundle in lower precision, ranges and all."
        ),
    },
    "Prove it": {
        "drift": Verb(
            "drift:drift", "bench", "Compare a candidate with its float model over many steps."
        ),
        "verify": Verb(
            "device:verify", "ort", "Check a bundle's digests, and its behaviour on this machine."
        ),
        "fits": Verb(
            "fits:fits", "export", "Say whether a bundle or model fits a device, and why."
        ),
        "certify": Verb(
            "certify:certify", "bench", "Ask compilers, checkers and provers about a bundle's C."
        ),
        "sign": Verb("sign:sign", "trust", "Sign a bundle as its author."),
        "inspect": Verb("device:inspect", "ort", "Show what a bundle promises."),
    },
    "Run it": {
        "run": Verb("run:run", "ort", "Step a bundle through an episode and count its writes."),
        "replay": Verb("replay:replay", "ort", "Step again what a black box recorded."),
        "watch": Verb("watch:watch", "watch", "Show a memory as it works, in a browser."),
        "report": Verb("report:report", "bench", "Draw runs and results as one page."),
    },
    "On the device": {
        "doctor": Verb(
            "targets:doctor", "ort", "Say what this machine lacks for an engine, with remedies."
        ),
    },
}
_MODEL = {
    "list": Verb("zoo:zoo", "export", "List the models that come with stategate.", "zoo"),
    "ranges": Verb(
        "calibrate:ranges",
        "export",
        "Measure how large a bundle's tensors become in closed loop.",
        "ranges",
    ),
    "sensitivity": Verb(
        "sensitivity:sensitivity",
        "export",
        "Propose a precision plan within bounds of error and flips.",
        "sensitivity",
    ),
    "health": Verb(
        "calibrate:health", "ort", "Learn what a bundle meets, to notice when a stream leaves it."
    ),
    "recalibrate": Verb(
        "calibrate:recalibrate",
        "export",
        "Choose the threshold that decides like the float bundle.",
        "recalibrate",
    ),
}
_EPISODES = {
    "show": Verb("record:episodes", "ort", "Say what is in recorded episodes."),
    "read": Verb("record:read_recording", "recordings", "Write a recording as episodes."),
    "write": Verb(
        "record:write_recording", "recordings", "Write a run as MCAP, LeRobotDataset or Parquet."
    ),
    "zoo": Verb("zoo:episode", "export", "Write a held-out episode of a zoo model.", "episode"),
    "wav": Verb("record:episode_wav", "ort", "Cut sound into episodes.", "episode-wav"),
    "gym": Verb(
        "record:episode_gym",
        "gym",
        "Write what an expert sees in a Gymnasium environment.",
        "episode-gym",
    ),
    "record": Verb("record:record", "ort", "Step a bundle and record what it is given.", "record"),
}
_BENCH = {
    "run": Verb("bench:run", "bench", "Measure bundles on this machine."),
    "report": Verb("bench:report", "bench", "Draw page and Markdown of a result anew."),
    "compare": Verb("bench:compare_command", "bench", "Tell whether one is slower."),
}
_DEVICE = {
    "targets": Verb(
        "targets:targets",
        "export",
        "List the devices that are known, each figure with its source.",
        "targets",
    ),
    "detect": Verb(
        "targets:detect_command",
        "export",
        "Say what this machine is, and what no file says.",
        "detect",
    ),
    "build-engine": Verb(
        "build_engine:build_engine_command",
        "tensorrt",
        "Build a bundle's TensorRT engine on this device.",
        "build-engine",
    ),
    "build-native": Verb(
        "build_native:build_native_command",
        "ort",
        "Compile a bundle's C source into a library.",
        "build-native",
    ),
    "trust": Verb("sign:trust", "ort", "Accept a bundle's native code, once.", "trust"),
    "retarget": Verb(
        "fits:retarget_command", "export", "Write bundles again for another device.", "retarget"
    ),
    "wear": Verb(
        "wear:wear", "ort", "Show how long the flash lasts under each snapshot policy.", "wear"
    ),
}
_INSTALL = {
    "bundle": Verb("install:bundle", "ort", "Put a bundle beside the one that runs."),
    "confirm": Verb("install:confirm_command", "ort", "Let the bundle on trial stay."),
    "go-back": Verb("install:go_back_command", "ort", "Run the bundle from before."),
    "status": Verb("install:status_command", "ort", "Say which bundle runs, and why."),
    "release": Verb(
        "install:release_command", "ort", "Give a bundle a release number and a migration."
    ),
}
_FLEET = {
    "deploy": Verb(
        "deploy:deploy", "ort", "Put a bundle on a machine over ssh, and try it there.", "deploy"
    ),
    "collect": Verb("fleet:collect", "fleet", "Read what robots brought home into one table."),
    "show": Verb("fleet:show_command", "fleet", "Say which robots need a look."),
    "episodes": Verb("fleet:episodes_command", "fleet", "Make episodes of black boxes."),
}
_CARRY = {
    "bill": Verb("bill:bill_command", "", "Say what is in a bundle: CycloneDX or SPDX.", "bill"),
    "push": Verb("push:push_command", "carry", "Put a bundle into a registry.", "push"),
    "pull": Verb("push:pull_command", "carry", "Take a bundle out of a registry.", "pull"),
}
GROUPS: dict[str, Group] = {
    "install": Group("Put updates on a device that can be taken back.", _INSTALL, "bundle"),
    "fleet": Group("Many robots: bundles go out, ledgers come home.", _FLEET),
    "carry": Group("Bills of materials, and bundles in a registry.", _CARRY),
    "model": Group("Models of the zoo, and numbers that export applies.", _MODEL),
    "episodes": Group(
        "Recorded inputs: make them, record them, look into them.", _EPISODES, "show"
    ),
    "bench": Group("Measure bundles: step times, tails, memory, energy.", _BENCH, "run"),
    "device": Group("Targets, and what is compiled for one.", _DEVICE),
}
COMPLETION = Verb("completion:completion", "", "Print what completes verbs and options in a shell.")

# Names of today and of before, as one word each.
COMMANDS: dict[str, Verb | Group] = {
    **{name: verb for verbs in FIRST_SCREEN.values() for name, verb in verbs.items()},
    **GROUPS,
    "completion": COMPLETION,
    **{v.old: v for group in GROUPS.values() for v in group.verbs.values() if v.old},
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
                default=entry.default,
                help=text.format(group=cmd_name, default=entry.default) + _example(cmd_name, entry),
                short_help=entry.line,
            )
        if entry is None:
            return None
        module, attribute = entry.place.split(":")
        command: click.Command = getattr(
            importlib.import_module(f"stategate.cli.{module}"), attribute
        )
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
    sections={
        **FIRST_SCREEN,
        "Run it": {**FIRST_SCREEN["Run it"], "bench": GROUPS["bench"]},
        "On the device": {
            **FIRST_SCREEN["On the device"],
            "install": GROUPS["install"],
            "fleet": GROUPS["fleet"],
            "device": GROUPS["device"],
        },
        "More": {
            "carry": GROUPS["carry"],
            "model": GROUPS["model"],
            "episodes": GROUPS["episodes"],
            "completion": COMPLETION,
        },
    },
    hidden=COMMANDS,
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
