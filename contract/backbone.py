"""A frozen backbone that travels beside the memory behind it."""

from __future__ import annotations

from stategate.contract.specs import Record, TensorSpec


class BackboneRef(Record, frozen=True):
    """What gives the features that the step of a bundle takes.

    The step may run on another engine than the backbone. The memory was trained behind these
    weights and no others: behind others it answers wrongly without a sign.
    """

    file: str  # the backbone as ONNX, a file of the bundle
    # inputs and features of some frames, a file of the bundle: whatever runs the backbone has to
    # give these
    check: str
    sha256: str  # digest of the weights or the file that the memory was trained behind
    inputs: tuple[TensorSpec, ...]  # what it takes
