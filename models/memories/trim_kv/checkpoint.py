"""Checkpoints of the package trimkv for Qwen3, by their names of files and weights.

A folder has ``config.json`` and the retention gates, ``trimkv_weights.pth``; the base model is in
``*.safetensors``, in that folder or in another. Embeddings stand outside of the step: an
observation is a row of them, and an answer the logits of the next token.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stategate.contract.errors import SpecError
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.memories.trim_kv.config import Form, TrimKvConfig

_GATES = "trimkv_weights.pth"
_NAMES = {  # of one layer: here, and in the checkpoint behind model.layers.N.
    "attention_norm.weight": "input_layernorm.weight",
    "to_q.weight": "self_attn.q_proj.weight",
    "to_k.weight": "self_attn.k_proj.weight",
    "to_v.weight": "self_attn.v_proj.weight",
    "q_norm.weight": "self_attn.q_norm.weight",
    "k_norm.weight": "self_attn.k_norm.weight",
    "to_out.weight": "self_attn.o_proj.weight",
    "gate_in.weight": "self_attn.retention_gate.linear1.weight",
    "gate_in.bias": "self_attn.retention_gate.linear1.bias",
    "gate_out.weight": "self_attn.retention_gate.linear2.weight",
    "gate_out.bias": "self_attn.retention_gate.bias",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp_out.weight": "mlp.down_proj.weight",
}
_MLP_IN = ("mlp.gate_proj.weight", "mlp.up_proj.weight")  # one behind the other


def load_trimkv(
    folder: str | Path, base: str | Path | None = None, *, memory: int, buffer: int, form: Form
) -> TrimKv:
    """The model of a checkpoint, in float32.

    Args:
        folder: Of ``config.json`` and the gates.
        base: Folder of the base model's weights; the same one if None.
        memory: See `TrimKvConfig`; the checkpoint does not say what it is used with.
        buffer: Likewise.
        form: Likewise.

    Raises:
        SpecError: A file is missing or another model's, or the gates are of another kind.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / "config.json").read_text())
        weights: dict[str, Tensor] = {}
        for part in sorted(Path(base or folder).glob("*.safetensors")):
            weights |= load_file(part)
        weights |= torch.load(folder / _GATES, map_location="cpu", weights_only=True)
        config = _config(settings, memory, buffer, form)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, pickle.UnpicklingError) as e:
        raise SpecError(
            "this is no checkpoint of trimkv",
            found=f"{folder}: {type(e).__name__}: {e}",
            expected=f"config.json, {_GATES} and the base model's *.safetensors",
            remedy="give the base model's folder as the second argument",
        ) from None
    model = TrimKv(config)
    _check_complete(weights, config.layers)
    named = {
        f"layers.{i}.{name}": value
        for i in range(config.layers)
        for name, value in _layer(weights, f"model.layers.{i}.").items()
    }
    named["norm.weight"] = _weight(weights, "model.norm.weight")
    tied = settings.get("tie_word_embeddings", False)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    named["head.weight"] = _weight(weights, head)
    named["head.bias"] = torch.zeros(config.out_features)
    named["embed.weight"], named["embed.bias"] = torch.eye(config.width), torch.zeros(config.width)
    try:
        model.load_state_dict(named)
    except RuntimeError as problem:
        raise SpecError(
            "weights of this checkpoint have another shape than its config.json says",
            found=str(problem).splitlines()[-1].strip(),
        ) from None
    return model.eval()


def _config(settings: dict[str, Any], memory: int, buffer: int, form: Form) -> TrimKvConfig:
    """What the package's configuration says; what the cell has no form for is refused."""
    forms = {
        "retention_gate": "rg",
        "attention_bias": False,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_scaling": None,
        "quantization_config": None,
    }
    # Angles that are scaled have other names in newer versions of transformers.
    rope = dict(settings.get("rope_parameters") or {})
    rope.pop("rope_theta", None)
    if rope.pop("rope_type", "default") != "default" or rope:
        settings = {**settings, "rope_scaling": settings["rope_parameters"]}
    for name, value in forms.items():
        if settings.get(name, value) != value:
            raise SpecError(
                f"checkpoints of trimkv with another {name} have no form here",
                found=f"{name}={settings[name]!r} in config.json",
                expected=repr(value),
            )
    heads = settings["num_attention_heads"]
    theta = settings.get("rope_theta") or settings["rope_parameters"]["rope_theta"]
    return TrimKvConfig(
        features=settings["hidden_size"],
        out_features=settings["vocab_size"],
        layers=settings["num_hidden_layers"],
        width=settings["hidden_size"],
        heads=heads,
        kv_heads=settings["num_key_value_heads"],
        head_dim=settings.get("head_dim", settings["hidden_size"] // heads),
        memory=memory,
        buffer=buffer,
        form=form,
        gate_hidden=settings["retention_gate_intermediate_size"],
        gate_bias=float(settings["retention_gate_bias_init"]),
        rope_theta=float(theta),
        qk_norm=True,
        mlp=settings["intermediate_size"],
        norm_eps=settings["rms_norm_eps"],
    )


def _layer(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    named = {name: _weight(weights, prefix + other) for name, other in _NAMES.items()}
    named["mlp_in.weight"] = torch.cat([_weight(weights, prefix + name) for name in _MLP_IN])
    return named


def _check_complete(weights: dict[str, Tensor], layers: int) -> None:
    """No weight of a layer is left out: a bias or a scale would be missing in every answer."""
    endings = {*_NAMES.values(), *_MLP_IN}
    names = {f"model.layers.{i}.{ending}" for i in range(layers) for ending in endings}
    other = sorted(n for n in weights if n.startswith("model.layers.") and n not in names)
    if other:
        raise SpecError(
            "the checkpoint has weights of layers that have no form here",
            found=", ".join(other[:3]) + (f" and {len(other) - 3} more" if other[3:] else ""),
            expected=f"those of {layers} layers of Qwen3 with retention gates",
        )


def _weight(weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise SpecError(
            f"the checkpoint has no weight {name!r}",
            found=f"{len(weights)} weights, such as {', '.join(sorted(weights)[:2])}",
            remedy="give the base model's folder as the second argument",
        )
    dtype = weights[name].dtype
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise SpecError(
            f"the weight {name!r} is quantised",
            found=str(dtype).removeprefix("torch."),
            expected="float32, float16 or bfloat16",
        )
    return weights[name].float()
