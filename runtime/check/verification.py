"""Is a bundle what was sealed, and does it behave on this machine as it did then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stategate.contract import Bundle
from stategate.contract.numbers import bounded
from stategate.runtime.check.golden import Replay, replay
from stategate.runtime.engines.engine import EngineChoice
from stategate.runtime.trust.accepted import accepted
from stategate.runtime.trust.policy import Trust


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What was found out about a bundle."""

    bundle: Bundle  # opened, every digest checked
    # names in its folder that the manifest does not list; never loaded
    undeclared_files: tuple[str, ...]
    # its golden episode, stepped here; None where it has none, or nobody asked for it
    replay: Replay | None
    digests_only: bool  # whether nobody did
    signer: str = ""  # whose signature was accepted; empty where none was asked for

    @property
    def sealed(self) -> bool:
        """Whether it was judged and kept its limits; false of a candidate and of a refused one."""
        return self.bundle.manifest.standing == "sealed"

    @property
    def intact(self) -> bool:
        """Whether files and behaviour are as they were, whatever was found then."""
        behaves = self.digests_only if self.replay is None else self.replay.passed
        return behaves and not self.undeclared_files

    @property
    def passed(self) -> bool:
        """Whether it is sealed and intact."""
        return self.sealed and self.intact


def verify(
    bundle: str | Path | Bundle,
    *,
    digests_only: bool = False,
    tolerance: float | None = None,
    engine: EngineChoice = "auto",
    trust: Trust | None = None,
) -> VerificationReport:
    """Check every digest of a bundle, and replay its golden episode on this machine.

        assert stategate.verify("build/policy").passed

    Args:
        bundle: Its folder.
        digests_only: Leave the replay out; needs no engine.
        tolerance: Largest error of outputs and states, as a share of their size; that of the
            receipt where it is None, 0.0001 for a bundle in lower precision.
        engine: What replays it: ``auto``, ``onnxruntime``, ``native`` or ``tensorrt``; several by
            commas are tried in turn.
        trust: Who may have signed it; see `stategate.runtime.Session.open`.

    Raises:
        BundleError: It is no bundle, or a file was altered (`DigestError`).
        TrustError: Nobody who is trusted signed it, or the policy refuses it.
        ManifestError: The manifest is malformed, or of a newer schema.
        EngineError: The engine cannot be loaded.
        EpisodeError: The golden episode does not fit the model.
    """
    tolerance = None if tolerance is None else bounded("tolerance", tolerance)
    opened = Bundle.open(bundle)
    accepts = accepted(opened, trust)
    undeclared = tuple(opened.undeclared_files())
    result = None if digests_only else replay(opened.path, tolerance, engine, trust)
    return VerificationReport(opened, undeclared, result, digests_only, accepts.signer)
