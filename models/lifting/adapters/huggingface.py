"""Hugging Face transformers: language models of constant memory, one token a step.

The step is the package's own decoding of one token with its cache. Each tensor of that cache is a
state with the name that the package has for it, such as ``layers[0].conv_states[0]``. Keys and
values of a sliding window become rings of fixed size. What grows is refused.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stategate.contract.errors import TraceError
from stategate.models.lifting.copies import copied
from stategate.models.lifting.lift import lift
from stategate.models.lifting.lifted import Lifted
from stategate.models.lifting.slots import attributes_of, holding, put, value_at
from stategate.models.lifting.trees import Leaf, flattened, rebuilt

_POSITION = "position"
_CACHES = "transformers.cache_utils"  # loaded since the model is
# What forward calls its cache: most models, xLSTM and its like, RWKV.
_KEYWORDS = ("past_key_values", "cache_params", "state")
# Layers of a cache that grow, and what the package has for the same layer with a window.
_WITH_WINDOW = {
    "DynamicLayer": "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer": "LinearAttentionAndSlidingWindowAttentionLayer",
}
_LAYERS = {"LinearAttentionLayer", "DummyLayer", *_WITH_WINDOW, *_WITH_WINDOW.values()}
# RWKV keeps the largest exponent so far, which starts below all; everything else starts at zero.
_FIRST = {"state[4]": -1e30}


def recognises(model: object) -> bool:
    """Whether it is a model of transformers that generates tokens."""
    return (
        isinstance(model, nn.Module)
        and hasattr(getattr(model, "config", None), "model_type")
        and callable(getattr(model, "prepare_inputs_for_generation", None))
    )


def from_huggingface(model: Any, window: int | None = None, output: str = "logits") -> Lifted:
    """The decoding of one token by a causal language model of transformers.

    Input ``token``: an id of the vocabulary, ``(1, 1)`` int64. A prompt goes in the same way, one
    token after the other. States: the tensors of the package's cache, by its own names, and
    ``position`` where attention has a window.

    Args:
        model: A ``...ForCausalLM`` in float32. Recurrent layers, short convolutions and attention
            over a sliding window are taken as they are.
        window: How many tokens layers of full attention see, the newest included. Without it such
            layers are refused, for their cache grows. **After more tokens than that the answers are
            no longer those of the original model.**
        output: ``logits``, ``(1, vocabulary)``; or ``token`` for the likeliest next one,
            ``next_token``, ``(1, 1)`` int64.

    Raises:
        TraceError: It is no such model, or its memory has no constant size.
    """
    _check(model, window, output)
    reference = Generation(copied(model).eval().cpu(), window, output)
    first = reference.explore()
    # Of a model that ran before: RWKV scales its weights in its first step.
    step = TokenStep(copied(reference.model), reference)
    _check_positions(step, first)
    lifted = lift(
        step,
        {"token": torch.zeros(1, 1, dtype=torch.int64)},
        hidden=first,
        returns=["answer", *first],
    )
    lifted.family = str(model.config.model_type)
    lifted.agree_with(reference)
    if reference.full:
        lifted.attention = (
            f"{', '.join(reference.full)} had full attention and see the last {window} tokens: "
            "after more tokens than that the answers are no longer those of the original model"
        )
    return lifted


class Generation(nn.Module):
    """The package's own generation from its own first step, with a cache that nobody else touches.

    It answers as `TokenStep` does. States that it is handed count before its first step alone, and
    only where an episode starts from other values than the first ones.

    Attributes:
        keyword: What forward calls its cache.
        cache: The cache, or None where the model makes it in the first step.
        filled: A cache after its first step.
        attributes: States that the model itself holds.
        rings: Rows of keys and values before the newest, by layer.
        full: Layers that had full attention.
    """

    def __init__(self, model: Any, window: int | None, output: str) -> None:
        super().__init__()
        self.model, self.output, self._window = model, output, window
        parameters = inspect.signature(model.forward).parameters
        self.keyword = next(name for name in _KEYWORDS if name in parameters)
        self.cache: Any = None
        self.filled: Any = None
        self.attributes: list[str] = []
        self.rings: dict[int, int] = {}
        self.full: list[str] = []
        self._first: dict[str, Tensor] = {}
        self._steps = 0

    def forward(self, token: Tensor, **states: Tensor) -> tuple[Any, ...]:
        """The answer to a token, ``(1, 1)``, and the cache after it, in the form of the states."""
        if not self._steps and any(not torch.equal(t, self._first[n]) for n, t in states.items()):
            self._begin(states)
        arguments = {self.keyword: self.cache, "use_cache": True}
        if self.rings:
            arguments["position_ids"] = torch.full((1, 1), self._steps)
        result = self.model(input_ids=token, **arguments)
        if self._steps == 0:
            self.cache = getattr(result, self.keyword, self.cache)
            self._set_windows()
        self._steps += 1
        return answer_of(result, self.output), *self._states().values()

    @torch.no_grad()
    def explore(self) -> dict[str, Tensor]:
        """Make one step and forget it; what all states hold before the first one."""
        before = dict(attributes_of(self.model))
        token = torch.zeros(1, 1, dtype=torch.int64)
        result = self.model(input_ids=token, use_cache=True)
        if not hasattr(result, self.keyword):  # the model takes a cache, and keeps it to itself
            self.cache = sys.modules[_CACHES].DynamicCache(config=self.model.config)
        empty = copy.deepcopy(self.cache)
        self(token)
        self.filled = self.cache  # `empty` is what the generation goes on with
        self.attributes = [
            name
            for name, value in attributes_of(self.model)
            if isinstance(value, Tensor) and value is not before.get(name)
        ]
        first = {
            name: torch.full_like(tensor, _FIRST.get(name, 0))
            for name, tensor in self._states().items()
        }
        if not first:
            raise TraceError(
                "the model keeps nothing from one token to the next",
                found=f"{type(self.model).__name__} with an empty cache",
                expected="recurrent layers, or attention over a window",
            )
        for name in self.attributes:
            put(self.model, name, before.get(name))
        self.cache, self._steps, self._first = empty, 0, first
        return first

    def _begin(self, states: Mapping[str, Tensor]) -> None:
        """Fill the cache with what is left of a text that somebody else began."""
        # A text without rings does not count its tokens.
        self._steps = int(states[_POSITION]) if self.rings else 1
        leaves, form = flattened(self.filled)
        names = [state_name(leaf, self.keyword) for leaf in leaves]
        self.cache = rebuilt(
            [states.get(n, leaf.value) for n, leaf in zip(names, leaves, strict=True)], form
        )
        for i, rows in self.rings.items():
            layer = self.cache.layers[i]
            layer.cumulative_length = self._steps
            if isinstance(layer.keys, Tensor):
                empty = rows - min(self._steps, rows)
                layer.keys, layer.values = layer.keys[..., empty:, :], layer.values[..., empty:, :]
        for name in self.attributes:
            put(self.model, name, states[name])

    def _set_windows(self) -> None:
        """Note what is a ring, and give full attention its window, after the first token."""
        layers = getattr(self.cache, "layers", [])
        kinds = {f"layers[{i}]": type(layer).__name__ for i, layer in enumerate(layers)}
        if strange := [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _LAYERS]:
            raise TraceError(
                "the model has a cache that stategate does not know",
                found=", ".join(strange),
                expected="recurrent states, short convolutions, and keys and values by token",
            )
        self.full = [name for name, kind in kinds.items() if kind in _WITH_WINDOW]
        if self.full and self._window is None:
            raise TraceError(
                "the cache of full attention grows with every token",
                found=f"{', '.join(self.full)} of {type(self.model).__name__}",
                expected="memory of constant size",
                remedy="from stategate.models import from_huggingface; from_huggingface(model, "
                "window=256) lets these layers see the last 256 tokens, which is another model "
                "than the original after 256 tokens",
            )
        if self._window is not None and not self.full:
            raise TraceError(
                "the model has no layer of full attention to give a window to",
                found=f"window={self._window}",
                remedy="from_huggingface(model)",
            )
        for i, layer in enumerate(layers):
            if (kind := _WITH_WINDOW.get(type(layer).__name__)) is not None:
                base = getattr(sys.modules[_CACHES], kind)
                # The package makes one mask for full layers and one for sliding ones.
                layer = layers[i] = _with_methods(layer, base, is_sliding=False)
                layer.sliding_window, layer.cumulative_length = self._window, 1
                layer.record_past = False
            if hasattr(layer, "sliding_window"):
                self.rings[i] = layer.sliding_window - 1

    def _states(self) -> dict[str, Tensor]:
        states = tensors_of(self.cache, self.keyword)
        for i, rows in self.rings.items():
            for name in {f"layers[{i}].keys", f"layers[{i}].values"} & states.keys():
                empty = rows - states[name].shape[-2]
                states[name] = functional.pad(states[name], (0, 0, empty, 0))
        states |= {name: value_at(self.model, name) for name in self.attributes}
        if self.rings:
            states[_POSITION] = torch.full((1, 1), self._steps)
        return states


class TokenStep(nn.Module):
    """One token of a model, whose cache is made anew from the states that are handed in."""

    def __init__(self, model: Any, reference: Generation) -> None:
        super().__init__()
        # Without choices that depend on values, which a graph cannot hold.
        model.set_attn_implementation("eager")
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")
        self.model, self._keyword, self._output = model, reference.keyword, reference.output
        self._longest = max(reference.rings.values(), default=0) + 1
        cache = copy.deepcopy(reference.filled)
        for i, rows in reference.rings.items():
            ring = cache.layers[i] = _with_methods(cache.layers[i], _Ring)
            ring.rows, ring.longest = rows, self._longest
        self._cache = cache  # its constants are used, its tensors are replaced

    def forward(self, token: Tensor, **memory: Tensor) -> tuple[Any, ...]:
        """The answer to a token, ``(batch, 1)``, and the memory after it."""
        leaves, form = flattened(self._cache)
        names = [state_name(leaf, self._keyword) for leaf in leaves]
        values = [memory.get(n, leaf.value) for n, leaf in zip(names, leaves, strict=True)]
        cache = rebuilt(values, form)
        arguments = {self._keyword: cache, "use_cache": True}
        position = memory.get(_POSITION)
        if position is not None:
            # The newest token has age 0; rows older than the episode are padding to the package.
            ages = torch.arange(self._longest - 1, -1, -1)
            arguments |= {"position_ids": position, "attention_mask": ages <= position}
        in_model = memory.keys() - {*names, _POSITION}
        with ExitStack() as stack:
            for name in in_model:
                stack.enter_context(holding(self.model, name, memory[name]))
            result = self.model(input_ids=token, **arguments)
            after = {name: value_at(self.model, name) for name in in_model}
        after |= tensors_of(cache, self._keyword)
        if position is not None:
            after[_POSITION] = position + 1
        return answer_of(result, self._output), *(after[name] for name in memory)


class _Ring:
    """What a layer of the cache does in a step: the last rows, the oldest first.

    The newest token is always in the last of ``longest`` columns, and a shorter ring ends there
    too. To the package the rows before it are a prompt, padded on the left while it is short.
    """

    keys: Tensor
    values: Tensor
    rows: int
    longest: int

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        keys = torch.cat([self.keys, key_states], -2)
        values = torch.cat([self.values, value_states], -2)
        self.keys, self.values = keys[..., 1:, :], values[..., 1:, :]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows + query_length, self.longest - 1 - self.rows

    def get_seq_length(self) -> int:
        return self.longest - 1


def answer_of(result: Any, output: str) -> dict[str, Tensor]:
    """Logits of the next token, ``(batch, vocabulary)``, or the likeliest one, ``(batch, 1)``."""
    logits = result.logits[:, -1]
    if output == "logits":
        return {"logits": logits}
    return {"next_token": logits.argmax(-1, keepdim=True)}


def state_name(leaf: Leaf, keyword: str) -> str:
    """The package's name of a part of its cache; empty for constants."""
    if not isinstance(leaf.value, Tensor) or "._" in leaf.path:
        return ""
    return leaf.path[1:] if leaf.path.startswith(".") else f"{keyword}{leaf.path}"


def tensors_of(cache: Any, keyword: str) -> dict[str, Tensor]:
    """What a cache holds, by the name of its state."""
    named = ((state_name(leaf, keyword), leaf.value) for leaf in flattened(cache)[0])
    return {name: tensor for name, tensor in named if name}


def _with_methods(layer: Any, first: Any, **attributes: Any) -> Any:
    """The same layer with the methods of another class before its own."""
    own: Any = type(layer)
    bases = (first,) if issubclass(first, own) else (first, own)
    kind: Any = type(first.__name__, bases, {**attributes, "__module__": own.__module__})
    changed = kind.__new__(kind)
    vars(changed).update(vars(layer))
    return changed


def _check(model: Any, window: int | None, output: str) -> None:
    config: Any = getattr(model, "config", None)
    if not recognises(model) or getattr(config, "is_encoder_decoder", False):
        raise TraceError(
            "this is no language model of transformers that decodes alone",
            found=type(model).__name__,
            expected="a ...ForCausalLM",
        )
    if output not in ("logits", "token"):
        raise TraceError(
            "a language model has no such output",
            found=repr(output),
            expected='output="logits" or output="token"',
        )
    if window is not None and (type(window) is not int or window < 2):
        raise TraceError(
            "the window is no number of tokens",
            found=repr(window),
            expected="a whole number of 2 or more: the newest token and those before it",
        )
    others = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if others:
        raise TraceError(
            "the weights are not in float32",
            found=", ".join(sorted(map(str, others))),
            expected="float32, which ONNX Runtime and the native engine compute in",
            remedy="from_huggingface(model.float()): the same weights, with less rounding between",
        )
    for name, part in model.named_modules():
        kinds = getattr(part, "rope_type", "")
        kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
        if changing := sorted({*kinds} & {"dynamic", "longrope"}):
            raise TraceError(
                "rotary frequencies change with the number of tokens so far",
                found=f"{name}: rope_type {changing[0]!r}",
                expected="default, linear, yarn or llama3",
            )
    layers = getattr(config.get_text_config(), "layer_types", None) or ()
    if "chunked_attention" in layers:
        raise TraceError(
            "attention in chunks forgets all tokens at once, which no ring does",
            found=", ".join(f"layers[{i}]" for i, k in enumerate(layers) if k.startswith("chunk")),
            expected="recurrent layers, or attention over a sliding window",
        )


def _check_positions(step: TokenStep, first: dict[str, Tensor]) -> None:
    """Refuse a table of positions: it ends, and an episode does not."""
    if _POSITION not in first:
        return
    far = torch.full((1, 1), 1 << 24)
    try:
        with torch.no_grad():
            # Of copies: the package writes its cache in place.
            copies = {name: tensor.clone() for name, tensor in first.items()}
            step(torch.zeros_like(far), **{**copies, _POSITION: far})
    except IndexError:
        config = step.model.config
        raise TraceError(
            "the model looks positions up in a table, which ends",
            found=f"{getattr(config, 'max_position_embeddings', 'too few')} positions",
            expected="rotary positions or none, for a memory that lasts",
        ) from None
