"""Weights: their digest, and files of what was trained around frozen ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stategate.contract.durable import write_whole
from stategate.contract.errors import SpecError
from stategate.contract.reading import open_regular


def weights_sha256(module: nn.Module) -> str:
    """Digest over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_part(path: Path, tensors: dict[str, Tensor], model_sha256: str) -> None:
    """Write the trained tensors by name, with the digest of the weights that they belong to."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {"model_sha256": model_sha256}))


def load_part(path: str | Path, model_sha256: str) -> dict[str, Tensor]:
    """Read what `save_part` wrote."""
    try:
        open_regular(path).close()  # opening a pipe would wait for ever
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get("model_sha256", "none")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise SpecError("the gate cannot be read", found=f"{path}: {problem}") from None
    if made_for != model_sha256:
        raise SpecError(
            "the gate was trained for another model",
            found=f"weights {made_for[:12]}",
            expected=f"weights {model_sha256[:12]}",
            remedy="train it again, around these weights",
        )
    return tensors
