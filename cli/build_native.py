"""``stategate device build-native``: the C source of a bundle becomes a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stategate.cli.device import described
from stategate.cli.options import bundle_verb, option, trust_option
from stategate.cli.show import show
from stategate.runtime.check.build_native import build_native


@bundle_verb("build-native")
@option("--cc", default="cc", help="C compiler, a cross compiler too.")
@option(
    "--isa",
    help="Instruction set for -march; that of the bundle's target, or the best here, if left out.",
)
@option("--flag", "flags", multiple=True, help="Further compiler flag; may be repeated.")
@trust_option
def command(bundle: Path, **options: Any) -> None:
    """Compile the C source in BUNDLE, check it, and measure it beside onnxruntime.

    The library is written into the bundle only if it repeats the golden episode. One for another
    machine cannot be run here; it is checked when that machine verifies the bundle. A signature is
    over the bundle as it was before, and goes: sign it again.

    \b
    Examples:
      stategate device build-native build/aura
      stategate device build-native build/aura --cc aarch64-linux-gnu-gcc
    """
    manifest = build_native(bundle, **options).manifest
    native = manifest.native
    assert native is not None
    show(native, [("native", described(native, manifest.target))])
