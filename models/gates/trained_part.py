"""What was trained of a frozen model, in a file that is bound to the model's weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stategate.contract.durable import write_whole
from stategate.contract.errors import ModelConfigError
from stategate.contract.reading import open_regular


def save_part(path: Path, tensors: dict[str, Tensor], model_sha256: str) -> None:
    """Write tensors as safetensors.

    Args:
        path: Where.
        tensors: The part, by name.
        model_sha256: Digest of the weights that it was trained for.
    """
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {"model_sha256": model_sha256}))


def load_part(path: str | Path, model_sha256: str) -> dict[str, Tensor]:
    """Read them.

    Raises:
        ModelConfigError: The file cannot be read, or was trained for other weights.
    """
    try:
        open_regular(path).close()  # opening a pipe would wait for ever
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get("model_sha256", "none")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise ModelConfigError("the gate cannot be read", found=f"{path}: {problem}") from None
    if made_for != model_sha256:
        raise ModelConfigError(
            "the gate was trained for another model",
            found=f"weights {made_for[:12]}",
            expected=f"weights {model_sha256[:12]}",
            remedy="train it again: stategate train-gate, or train-retention",
        )
    return tensors
