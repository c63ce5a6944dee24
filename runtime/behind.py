"""A frozen backbone and the memory behind it, stepped together, each on an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract import Bundle, Episode
from stategate.contract.backbone import BackboneRef
from stategate.contract.errors import BundleError, DigestError, StepInputError
from stategate.contract.reading import FILE_BYTES, file_sha256
from stategate.runtime.base.closeable import Closeable
from stategate.runtime.session import Session

Array = NDArray[Any]
Features = Callable[[Mapping[str, Array]], Array]
"""From inputs by name to features ``(1, features)``, or that many numbers in any shape."""

TOLERANCE = 0.02
"""How far features may be from those of training, as a share of their spread: an engine that
computes in float16 stays within it, other weights are off by a whole spread."""


class WrappedSession(Closeable):
    """Steps a bundle that carries its backbone: observations in, an action out.

    Only the memory is state: `memory` has the ledger, snapshots and reset.

    Attributes:
        memory: The session of the memory.
    """

    def __init__(self, memory: Session, ref: BackboneRef, run: Features, check: Episode) -> None:
        self.memory = memory
        self._run, self._check = run, check
        (self._features,) = memory.manifest.inputs
        self._names = {tensor.name for tensor in ref.inputs}

    @classmethod
    def open(
        cls,
        path: str | Path | Bundle,
        *,
        backbone: Features | str | Path | None = None,
        tolerance: float = TOLERANCE,
        **options: Any,
    ) -> WrappedSession:
        """Open the memory, and make sure that the backbone is the one that it was trained behind.

        Args:
            path: The bundle, or its folder.
            backbone: What runs it: a function, such as a TensorRT engine's; a copy of the bundle's
                ONNX file; or None for that file itself, in ONNX Runtime.
            tolerance: See `check`.
            options: Of `Session.open`; ``engine`` is that of the memory.

        Raises:
            BundleError: The bundle carries no backbone.
            DigestError: The file, or what the function gives, is of another backbone.
            MissingDependencyError: ONNX Runtime is needed and not installed.
        """
        bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        ref = bundle.manifest.backbone
        if ref is None:
            raise BundleError(
                "this bundle carries no backbone",
                found=f"inputs {', '.join(tensor.name for tensor in bundle.manifest.inputs)}",
                expected="a bundle of: stategate wrap --backbone apart",
                remedy="Session.open steps any other bundle",
            )
        files = {file.path: file for file in bundle.manifest.files}
        if callable(backbone):
            run = backbone
        else:
            if backbone is not None:
                digest, _ = file_sha256(Path(backbone), FILE_BYTES)
                if digest != files[ref.file].sha256:
                    raise _other_backbone(f"{backbone}: sha256 {digest}", files[ref.file].sha256)
            from stategate.runtime.engines.ort import Function  # a device may have no such library

            run = Function(bundle.read(files[ref.file]), [tensor.name for tensor in ref.inputs])
        check = Episode.load(bundle.read(files[ref.check]))
        session = cls(Session.open(bundle, **options), ref, run, check)
        try:
            session.check(tolerance)
        except BaseException:
            session.close()
            raise
        return session

    def check(self, tolerance: float = TOLERANCE) -> float:
        """Compare features of recorded frames with those of training; how far off they are.

        Args:
            tolerance: Largest root mean square difference, in spreads of the features.

        Raises:
            DigestError: They are further off: the backbone has other weights.
        """
        right = self._check.outputs["features"].reshape(self._check.steps, -1).astype(np.float64)
        answers = np.stack(
            [np.asarray(self._run(frame), np.float64).reshape(-1) for frame in self._check]
        )
        if answers.shape != right.shape:
            raise _other_backbone(f"{answers.shape[1]} features", f"{right.shape[1]} features")
        spread = float(np.sqrt(np.square(right - right.mean(0)).mean())) or 1.0
        gap = float(np.sqrt(np.square(answers - right).mean())) / spread
        if not gap <= tolerance:
            raise _other_backbone(
                f"features that are {gap:.2g} of their spread off", f"at most {tolerance:g}"
            )
        return gap

    def step(self, **inputs: Array) -> Mapping[str, Array]:
        """One observation; see `Session.step`.

        Args:
            inputs: Of the backbone, by name.
        """
        if inputs.keys() != self._names:
            raise StepInputError(
                "the inputs are not the backbone's",
                found=", ".join(sorted(inputs)) or "none",
                expected=", ".join(sorted(self._names)),
            )
        features = np.asarray(self._run(inputs), np.float32).reshape(self._features.shape)
        return self.memory.step(**{self._features.name: features})

    def reset(self) -> None:
        """Empty the memory."""
        self.memory.reset()

    def close(self) -> None:
        """Let go of everything."""
        self.memory.close()


def _other_backbone(found: str, expected: str) -> DigestError:
    return DigestError(
        "this is not the backbone that the memory was trained behind",
        found=found,
        expected=expected,
        remedy="use the bundle's own backbone.onnx, or wrap the new backbone: stategate wrap",
    )
