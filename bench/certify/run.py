"""Every tool asked about one bundle, and the report of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from stategate.bench.certify.back_to_back import back_to_back, self_tests
from stategate.bench.certify.builds import portable_source, version_of
from stategate.bench.certify.case import Case
from stategate.bench.certify.coverage import coverage
from stategate.bench.certify.misra import misra, warnings
from stategate.bench.certify.proof import eva
from stategate.bench.certify.real_time import longest, no_calls, stack
from stategate.bench.certify.report import Report, report_of, write_report
from stategate.contract import Bundle
from stategate.contract.bundle import refuse_inside_bundle
from stategate.contract.durable import make_folder
from stategate.contract.errors import EngineError
from stategate.contract.staging import scratch_folder
from stategate.runtime.trust.code import refusal, remedy

TOOLS: tuple[str, ...] = (
    *("gcc", "clang-19", "cppcheck", "frama-c", "valgrind", "qemu-x86_64", "qemu-aarch64"),
    *("aarch64-linux-gnu-gcc", "arm-none-eabi-gcc", "qemu-system-arm"),
)


def certify(
    path: str | Path,
    out: Path,
    *,
    steps: int = 100_000,
    limit_s: float = 900.0,
    eva_precision: int = 2,
    is_quick: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> Report:
    """Ask every tool that is here about a bundle's C, and write what they say.

    Args:
        path: A bundle with C source.
        out: A folder for page, record and evidence.
        steps: Of the comparison of model and code.
        limit_s: Seconds of one tool.
        eva_precision: Of Frama-C, 0 to 11; more is slower and has fewer false alarms.
        is_quick: Leave out what takes minutes.
        report: Called with how many of `STAGES` are done.

    Raises:
        EngineError: It has no C source, no self-test in it, no golden episode, or nobody accepted
            its code on this machine.
    """
    bundle = Bundle.open(path)
    refuse_inside_bundle(out, is_filled=True)
    golden = bundle.golden()
    native = bundle.manifest.native
    again = f"stategate export MODEL --engines onnxruntime,native --out {path}"
    if native is None or golden is None or "native/self_test.c" not in native.sources:
        lacking = (
            "C source" if native is None else "golden episode" if golden is None else "self-test"
        )
        raise EngineError(
            f"the bundle has no {lacking} to certify", found=str(path),
            expected="a bundle that this version made with a native engine", remedy=again,
        )  # fmt: skip
    if (problem := refusal(bundle)) is not None:
        raise EngineError("the C is not run here", found=problem, remedy=remedy(bundle))
    make_folder(out / "evidence")
    forget(out)
    with scratch_folder() as scratch:
        folder = Path(scratch) / "native"
        folder.mkdir()
        sources = portable_source(bundle, folder)
        case = Case(bundle, golden, Path(scratch), out, steps, limit_s, is_quick, sources)
        episode = back_to_back(case)
        stages: list[Callable[[], None]] = [
            lambda: self_tests(case, episode),
            lambda: coverage(case, episode),
            *(partial(tool, case) for tool in (misra, warnings)),
            lambda: eva(case, eva_precision),
            *(partial(tool, case) for tool in (no_calls, longest, stack)),
        ]
        for done, stage in enumerate(stages, 1):
            stage()
            report(done)
        finding = report_of(case, {tool: version_of(tool) for tool in TOOLS})
    write_report(finding, out)
    return finding


def forget(out: Path) -> None:
    """Delete what an earlier run wrote: none of it is of this one, which may end early."""
    if (out / "certify.json").is_file():
        for old in (*out.glob("certify.*"), *(out / "evidence").glob("*.txt"), out / "golden.bin"):
            old.unlink(missing_ok=True)
