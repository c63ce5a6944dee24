"""Language models of transformers, beside the package's own generation and its own batch form.

The page about adapters is run by `tests/test_docs.py`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from stategate.cli.main import main
from stategate.contract import load_episode
from stategate.contract.errors import TraceError
from stategate.export.frontends.references import StatefulReference
from stategate.export.make import make
from stategate.models import from_huggingface
from stategate.models.lifting.adapters import adapted
from stategate.models.lifting.lifted import Lifted
from stategate.runtime import Pool, Session

# transformers takes seconds to import, so nothing here is among the fast tests.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_fla")]

VOCABULARY, EPISODES, TOKENS = 50, 4, 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ATTENTION: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
LINEAR_FULL = ["linear_attention", "full_attention"]
LINEAR_HYBRID = ["linear_attention", "hybrid"]

# Of each family: its class, its configuration, and the window of its full attention, if it has any.
FAMILIES: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "Mamba": ("Mamba", {**SIZES, "state_size": 4}, None),
    "FalconMamba": ("FalconMamba", {**SIZES, "state_size": 4}, None),
    "Mamba2": (
        "Mamba2",
        {**SIZES, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        None,
    ),
    "Rwkv": ("Rwkv", {**SIZES, "attention_hidden_size": 32, "intermediate_size": 48}, None),
    "xLSTM": (
        "xLSTM",
        {**SIZES, "hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "chunk_size": 16},
        None,
    ),
    "RecurrentGemma": (
        "RecurrentGemma",
        {
            **SIZES,
            **ATTENTION,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 16,
        },
        None,
    ),
    "Qwen3Next": (
        "Qwen3Next",
        {
            **SIZES,
            **ATTENTION,
            **DELTA,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": LINEAR_FULL,
        },
        64,
    ),
    "Qwen3.5": ("Qwen3_5", {**SIZES, **ATTENTION, **DELTA, "layer_types": LINEAR_FULL}, 64),
    "OlmoHybrid": (
        "OlmoHybrid",
        {
            **SIZES,
            **ATTENTION,
            **DELTA,
            "linear_num_value_heads": 2,
            "layer_types": LINEAR_FULL,
        },
        64,
    ),
    "KimiLinear": (
        "KimiLinear",
        {
            **SIZES,
            "intermediate_size": 48,
            "moe_intermediate_size": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": LINEAR_FULL,
        },
        64,
    ),
    "Bamba": ("Bamba", {**SIZES, **ATTENTION, **MAMBA_2, "attn_layer_indices": [1]}, 64),
    "NemotronH": (
        "NemotronH",
        {
            **SIZES,
            **ATTENTION,
            "layers_block_type": ["mamba", "mlp", "attention"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
        64,
    ),
    "GraniteMoeHybrid": (
        "GraniteMoeHybrid",
        {
            **SIZES,
            **ATTENTION,
            **MAMBA_2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
        },
        64,
    ),
    "Zamba": (
        "Zamba",
        {
            **SIZES,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 48,
            "mamba_d_state": 4,
            "n_mamba_heads": 2,
            "layers_block_type": LINEAR_HYBRID * 2,
        },
        64,
    ),
    "Zamba2": (
        "Zamba2",
        {
            **SIZES,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "chunk_size": 16,
            "adapter_rank": 4,
            "layers_block_type": [*LINEAR_HYBRID, "hybrid"],
        },
        64,
    ),
    "FalconH1": ("FalconH1", {**SIZES, **ATTENTION, **MAMBA_2, "mamba_d_ssm": 64}, 64),
    "Jamba": (
        "Jamba",
        {
            **SIZES,
            **ATTENTION,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
        },
        64,
    ),
    "Lfm2": ("Lfm2", {**SIZES, **ATTENTION, "layer_types": ["conv", "full_attention"]}, 64),
    "MiniMax": (
        "MiniMax",
        {**SIZES, **ATTENTION, "num_local_experts": 2, "layer_types": LINEAR_FULL},
        64,
    ),
    "Mistral": ("Mistral", {**SIZES, **ATTENTION, "sliding_window": 8}, None),
    "Gemma2": (
        "Gemma2",
        {
            **SIZES,
            **ATTENTION,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        64,
    ),
    "GptOss": (
        "GptOss",
        {
            **SIZES,
            **ATTENTION,
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        64,
    ),
}


def built(family: str, **changes: object) -> Any:
    """A tiny model with random weights, the same in every run."""
    import transformers

    name, sizes, _ = FAMILIES[family]
    config = f"{name}TextConfig" if family == "Qwen3.5" else f"{name}Config"
    torch.manual_seed(0)
    configuration = getattr(transformers, config)(**{**sizes, **changes})
    return getattr(transformers, f"{name}ForCausalLM")(configuration).eval()


def tokens(count: int = TOKENS, seed: int = 0) -> Tensor:
    """Ids of the vocabulary, ``(1, count)``."""
    return torch.randint(0, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def generated(model: Any, ids: Tensor) -> Tensor:
    """The package's own logits, one token at a time with its own cache, ``(count, vocabulary)``."""
    from transformers import DynamicCache

    names = inspect.signature(model.forward).parameters
    keyword = next(n for n in ("past_key_values", "cache_params", "state") if n in names)
    cache, answers = None, []
    if type(model).__name__.startswith("RecurrentGemma"):  # it answers without its cache
        cache = DynamicCache(config=model.config)
    for t in range(ids.shape[1]):
        # As generate() hands them in: without them some hybrids count a layer that has no tokens.
        positions = {"position_ids": torch.tensor([[t]])} if "position_ids" in names else {}
        result = model(input_ids=ids[:, t : t + 1], use_cache=True, **{keyword: cache}, **positions)
        cache = getattr(result, keyword, cache)
        answers.append(result.logits[:, -1])
    return torch.cat(answers)


@torch.no_grad()
def stepped(step: Lifted, ids: Tensor, states: dict[str, Tensor] | None = None) -> Tensor:
    """Logits of the step in closed loop, ``(count, vocabulary)``; ``states`` holds its end."""
    states, answers = step.initial_states() if states is None else states, []
    for t in range(ids.shape[1]):
        result = step.step({"token": ids[:, t : t + 1]}, states)
        states.update(result.states)
        answers.append(result.outputs["logits"])
    return torch.cat(answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_equals_the_packages_generation_and_its_batch_form(family: str) -> None:
    model = built(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    step = from_huggingface(model, window=FAMILIES[family][2])

    for seed in range(EPISODES):
        ids = tokens(seed=seed)
        answers = stepped(step, ids)
        expected = generated(copy.deepcopy(model), ids)
        torch.testing.assert_close(answers, expected, rtol=0.0, atol=1e-5)
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits[0]
        torch.testing.assert_close(answers, whole, rtol=0.0, atol=1e-5)
    # The reference goes on where an episode starts from given states, with rings half full.
    states = step.initial_states()
    stepped(step, ids[:, :10], states)
    reference = StatefulReference(step)
    reference.begin({name: tensor.numpy() for name, tensor in states.items()})
    for t in range(10, 30):
        outputs, _, _ = reference.step({"token": ids[:, t : t + 1].numpy()})
        np.testing.assert_allclose(outputs["logits"][0], answers[t].numpy(), rtol=0.0, atol=1e-5)
    assert all(tensor.shape[0] == 1 for tensor in step.initial_states().values())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0.0, atol=0.0)


def test_a_window_makes_a_layer_of_full_attention_see_the_last_tokens_alone() -> None:
    # With one layer, and positions that count by their distance, this is the batch form of a
    # sequence that has no more than these tokens.
    model = llama(num_hidden_layers=1)
    ids, window = tokens(40), 8

    answers = stepped(from_huggingface(model, window=window), ids)

    for t in range(ids.shape[1]):
        with torch.no_grad():
            last = model(input_ids=ids[:, max(0, t + 1 - window) : t + 1]).logits[:, -1]
        torch.testing.assert_close(answers[t : t + 1], last, rtol=0.0, atol=1e-5)
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0]
    assert (answers[window:] - whole[window:]).abs().max() > 1e-3  # another model beyond it


# Recurrent; gated delta and attention with experts; attention beside the cache; RWKV's five states.
@pytest.mark.parametrize("family", ["Mamba", "Qwen3Next", "RecurrentGemma", "Rwkv"])
def test_a_bundle_answers_as_the_package_generates(family: str, tmp_path: Path) -> None:
    model, window = built(family), FAMILIES[family][2]
    step = from_huggingface(model, window=window)

    bundle = make(step, tmp_path / "lm", steps=100, engines="onnxruntime,native")

    assert not bundle.manifest.no_native
    assert bundle.manifest.model.family == model.config.model_type
    drawn = load_episode(bundle.path / bundle.manifest.golden).inputs["token"]
    assert drawn.min() >= 0 and 5 < drawn.max() < VOCABULARY
    for engine in ("onnxruntime", "native"):
        with Session.open(bundle, engine=engine) as session:
            for seed in range(EPISODES):
                ids = tokens(seed=seed)
                session.reset()
                answers = [
                    session.step(token=ids[:, t : t + 1].numpy())["logits"].copy()
                    for t in range(ids.shape[1])
                ]
                expected = generated(copy.deepcopy(model), ids).numpy()
                np.testing.assert_allclose(np.concatenate(answers), expected, rtol=0.0, atol=1e-5)


def test_the_likeliest_token_is_what_generate_gives(tmp_path: Path) -> None:
    model = built("Qwen3.5", eos_token_id=None)
    ids = tokens(10)
    step = from_huggingface(model, window=64, output="token")
    states, prompt, answers = step.initial_states(), ids.tolist()[0], []

    for _ in range(40):
        token = prompt.pop(0) if prompt else answers[-1]
        result = step.step({"token": torch.tensor([[token]])}, states)
        states = dict(result.states)
        if not prompt:
            answers.append(int(result.outputs["next_token"]))

    with torch.no_grad():
        whole = model.generate(ids, max_new_tokens=len(answers), do_sample=False)
    assert answers == whole[0, ids.shape[1] :].tolist()


def test_a_pool_reads_a_text_for_each_session(tmp_path: Path) -> None:
    model = built("Lfm2")
    bundle = make(from_huggingface(model, window=64), tmp_path / "pool", steps=20, sessions=2)
    ids = torch.cat([tokens(30, seed=1), tokens(30, seed=2)])

    with Pool.open(bundle) as pool:
        answers, rows = [], [pool.join(), pool.join()]
        for t in range(30):
            if t == 10:
                pool.reset(rows[1])
            answers.append(pool.step(token=ids[:, t : t + 1].numpy())["logits"].copy())

    answer = np.stack(answers)
    expected = generated(copy.deepcopy(model), ids[:1]).numpy()
    np.testing.assert_allclose(answer[:, 0], expected, rtol=0.0, atol=1e-5)
    again = generated(copy.deepcopy(model), ids[1:, 10:]).numpy()
    np.testing.assert_allclose(answer[10:, 1], again, rtol=0.0, atol=1e-5)


def llama(**changes: object) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, **ATTENTION, **changes})
    return transformers.LlamaForCausalLM(config).eval()


def bfloat16() -> Any:
    return built("Mamba").bfloat16()


def table_of_positions() -> Any:
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def encoder() -> Any:
    import transformers

    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=32, d_ff=48, num_layers=1, num_heads=4)
    )


def changing_frequencies() -> Any:
    return llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})


def chunked() -> Any:
    return llama(layer_types=["chunked_attention", "full_attention"], attention_chunk_size=8)


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        (llama, {}, ["grows with every token", "layers[0], layers[1]", "window=256"]),
        (lambda: built("Qwen3Next"), {}, ["grows with every token", "layers[1]", "window=256"]),
        (lambda: built("Mamba"), {"window": 8}, ["no layer of full attention", "window=8"]),
        (llama, {"window": 1}, ["no number of tokens", "2 or more"]),
        (llama, {"window": 8, "output": "text"}, ["no such output", "'text'"]),
        (bfloat16, {}, ["not in float32", "bfloat16", "model.float()"]),
        (encoder, {}, ["decodes alone", "T5ForConditionalGeneration"]),
        (lambda: nn.Linear(2, 2), {}, ["decodes alone", "Linear"]),
        (table_of_positions, {"window": 8}, ["a table, which ends", "64 positions"]),
        (changing_frequencies, {"window": 8}, ["model.rotary_emb: rope_type 'dynamic'"]),
        (chunked, {"window": 8}, ["attention in chunks", "layers[0]"]),
    ],
)
def test_what_has_no_constant_memory_is_refused_by_name(
    factory: Callable[[], Any], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(TraceError) as refusal:
        from_huggingface(factory(), **options)

    for word in words:
        assert word in str(refusal.value)


def test_a_model_is_recognised_by_its_parts_and_its_window_is_named(tmp_path: Path) -> None:
    assert adapted(built("Mamba")) is not None
    with pytest.raises(TraceError, match="grows with every token"):
        make(llama(), tmp_path / "none")
    assert not list(tmp_path.iterdir())

    bundle = make(from_huggingface(llama(), window=8), tmp_path / "lm", steps=20)

    shown = CliRunner().invoke(main, ["inspect", str(bundle.path)])
    assert "layers[0], layers[1] had full attention and see the last 8 tokens" in shown.output
