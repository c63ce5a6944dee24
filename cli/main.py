"""The ``stategate`` command: device verbs here, host verbs loaded by name when they are used.

The table below is the only tie between rooms on the command line: strings, so that ``inspect``,
``verify`` and ``run`` work where torch and onnx were never installed.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from stategate.common.ending import CommandGroup
from stategate.contract.errors import MissingDependencyError

# verb -> (module:attribute, extra that it needs, one line for --help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "zoo": ("stategate.cli.zoo:zoo", "export", "List the models that come with stategate."),
    "episode": (
        "stategate.cli.zoo:episode",
        "export",
        "Write a held-out episode of a zoo model.",
    ),
    "episode-wav": (
        "stategate.cli.record:episode_wav",
        "ort",
        "Cut sound into episodes.",
    ),
    "episode-gym": (
        "stategate.cli.record:episode_gym",
        "gym",
        "Write what an expert sees in a Gymnasium environment.",
    ),
    "record": (
        "stategate.cli.record:record",
        "ort",
        "Step a bundle and record what it is given.",
    ),
    "episodes": (
        "stategate.cli.record:episodes",
        "ort",
        "Say what is in recorded episodes.",
    ),
    "calibrate": (
        "stategate.cli.calibrate:calibrate",
        "export",
        "Choose a gate's threshold from closed-loop episodes.",
    ),
    "recalibrate": (
        "stategate.cli.calibrate:recalibrate",
        "export",
        "Choose the threshold at which a quantised bundle decides like the float one.",
    ),
    "train-gate": (
        "stategate.cli.train_gates:train_gate_command",
        "export",
        "Train a write gate for a frozen model.",
    ),
    "train-retention": (
        "stategate.cli.train_gates:train_retention_command",
        "export",
        "Train the retention gates of a frozen TRIM-KV.",
    ),
    "ranges": (
        "stategate.cli.calibrate:ranges",
        "export",
        "Measure how large a float bundle's tensors become in closed loop.",
    ),
    "sensitivity": (
        "stategate.cli.sensitivity:sensitivity",
        "export",
        "Propose a precision plan under a bound on output error and gate flips.",
    ),
    "export": ("stategate.cli.export:export", "export", "Make a bundle from a torch module."),
    "adopt": (
        "stategate.cli.adopt:adopt",
        "export",
        "Make a bundle from an ONNX file that carries its own state.",
    ),
    "build-native": (
        "stategate.cli.build_native:build_native_command",
        "ort",
        "Compile a bundle's C source into a library.",
    ),
    "build-engine": (
        "stategate.cli.build_engine:build_engine_command",
        "tensorrt",
        "Build a bundle's TensorRT engine on this device.",
    ),
    "drift": (
        "stategate.cli.drift:drift",
        "bench",
        "Compare a candidate with its float model over many steps.",
    ),
    "inspect": ("stategate.cli.device:inspect", "ort", "Show what a bundle promises."),
    "verify": (
        "stategate.cli.device:verify",
        "ort",
        "Check a bundle's digests, and its behaviour on this machine.",
    ),
    "run": (
        "stategate.cli.run:run",
        "ort",
        "Step a bundle through an episode and count its writes.",
    ),
    "wear": (
        "stategate.cli.wear:wear",
        "ort",
        "Show how long the flash lasts under each snapshot policy.",
    ),
    "bench": (
        "stategate.cli.bench:bench",
        "bench",
        "Measure bundles: step times, tails, memory, energy.",
    ),
    "bench-overhead": (
        "stategate.cli.measure:bench_overhead",
        "bench",
        "Time a counted step beside plain ONNX Runtime.",
    ),
    "pace": (
        "stategate.cli.measure:pace",
        "bench",
        "Time a step of several bundles in one run.",
    ),
    "soak": (
        "stategate.cli.measure:soak",
        "bench",
        "Step a bundle a million times and look for growth.",
    ),
    "targets": (
        "stategate.cli.targets:targets",
        "export",
        "List the devices that are known, each figure with its source.",
    ),
    "fits": (
        "stategate.cli.fits:fits",
        "export",
        "Say whether a bundle or model fits a device, and why.",
    ),
    "retarget": (
        "stategate.cli.retarget:retarget_command",
        "export",
        "Write bundles again for another device, those that fit.",
    ),
    "doctor": (
        "stategate.cli.doctor:doctor",
        "ort",
        "Say what this machine lacks for an engine, with remedies.",
    ),
    "detect": (
        "stategate.cli.detect:detect_command",
        "export",
        "Say what this machine is, and what could not be told.",
    ),
    "plot": ("stategate.cli.measure:plot", "bench", "Draw memory and writes of a run."),
}


class LazyGroup(CommandGroup):
    """A group that imports a verb's module when the verb is used, and not for ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one verb."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; its body imports what the verb needs, and its options need nothing.

        Raises:
            MissingDependencyError: A library of the verb's extra is not installed.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as missing:
            verb = ctx.invoked_subcommand
            if verb is None or (missing.name or "").startswith("stategate"):
                raise
            raise MissingDependencyError(
                missing.name or "a library", COMMANDS[verb][1]
            ) from missing

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
