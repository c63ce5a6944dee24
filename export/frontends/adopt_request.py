"""What the user says about a file that is adopted; read from a command line without onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says about a file.

    Attributes:
        dims: Sizes of named dynamic axes.
        shapes: Whole shapes of inputs, for axes without a name.
        constants: Inputs that shall be fixed for ever, as text.
        states: Output name by state input name; empty to look for pairs.
        initial: What states start with, by input name: an array of the state's shape and dtype,
            or one number as text for all its elements. Zeros for those not named.
        contexts: Samples of the window before that an input begins with; see
            `stategate.export.frontends.context`.
    """

    dims: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, str]
    states: Mapping[str, str]
    initial: Mapping[str, np.ndarray | str] = field(default_factory=dict)
    contexts: Mapping[str, int] = field(default_factory=dict)
