"""``python -m lab VERB``, from the root of the repository: what only this house needs."""

from __future__ import annotations

from importlib import import_module

import click

from stategate.common.ending import CommandGroup

# verb -> (module:attribute, one line for --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("lab.train:train_command", "Remake the checkpoint of a trained zoo model."),
    "train-gate": (
        "lab.training.gates.commands:train_gate_command",
        "Train a write gate for a frozen model.",
    ),
    "train-retention": (
        "lab.training.gates.commands:train_retention_command",
        "Train the retention gates of a frozen TRIM-KV.",
    ),
    "precision-table": (
        "lab.precision_table:precision_table",
        "Collect what precision plans cost into one list and one page.",
    ),
    "plot": ("lab.picture:plot", "Draw memory and writes of a run."),
    "allocations": ("lab.allocations:allocations", "Count what a step asks malloc for."),
    "pace": ("lab.pace:pace", "Time a step of several bundles in turns."),
    "matrix": ("lab.matrix:matrix_command", "Show what `make matrix` built and what was refused."),
    "peers": ("lab.peers.race:peers", "Race a bundle against other people's runtimes."),
    "bits": ("lab.bits:bits", "One digest of each model over all builds."),
    "bench-native": ("lab.native_race:bench_native", "Race a bundle's native engine."),
    "overhead": ("lab.overhead:overhead", "Time a counted step beside plain ONNX Runtime."),
    "soak": ("lab.soak:soak", "Step a bundle a million times and look for growth."),
    "jitter": ("lab.jitter:jitter", "How late a loop is beside a busy thread."),
    "certify": ("lab.certify.command:certify_command", "Ask other tools about a bundle's C."),
    "counts": ("lab.counts:counts_command", "Count instructions, stack, flash and RAM of a step."),
    "deferred": ("lab.deferred:deferred", "Deferred writes against plain ones."),
    "state-precision": (
        "lab.state_precision:state_precision",
        "Which memories bear int8 over 100,000 steps.",
    ),
    "reproducible": ("lab.reproducible:reproducible", "Build everything twice, and compare."),
    "sbom": ("lab.bill:sbom", "Score bills of materials by a published measure."),
    "formats": ("lab.formats.command:formats", "A sealed bundle from a recording of each format."),
    "gpu-check": ("lab.gpu_check:gpu_check", "Check TensorRT on this machine's GPU."),
    "power-loss": ("lab.power_loss:power_loss", "Cut the power at every moment of a run."),
    "corpus": ("lab.attack.corpus:corpus", "Write the files that fuzzers begin with."),
    "attack": ("lab.attack.table:attack", "Attack memory and readers, and count losses."),
    "health": ("lab.health:health", "What the health envelope promises and sees."),
    "fleet": ("lab.fleet:fleet", "Simulate many robots with planted faults."),
    "foreign": ("lab.foreign.command:foreign", "Adopt other people's files."),
    "controlled": ("lab.evidence.controlled.commands:controlled", "The controlled benchmark."),
    "memory": ("lab.evidence.memory.commands:memory", "The memory against a growing cache."),
    "wrap-evidence": ("lab.evidence.wrap.commands:wrap_evidence", "Frozen policies get a memory."),
    "robot": ("lab.evidence.robot.commands:main", "Robots that have to remember."),
    "compare-evidence": (
        "lab.evidence.compare:compare_evidence",
        "Say whether results changed, or only noise in them.",
    ),
    "manual": ("lab.manual:manual", "Write the pages that the code knows."),
    "pages": ("lab.evidence.pages:pages", "Remake index.md and controlled.md of docs/evidence."),
}


class _LazyGroup(CommandGroup):
    """A group that imports a verb's module when the verb is used, and not for ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Trainings, races and evidence of this repository."""


if __name__ == "__main__":
    main(prog_name="python -m lab")
