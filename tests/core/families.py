"""Tiny random models of the families that transformers knows, and what Align does with each: the table of docs/families.md.

`python -m tests.core.families > docs/families.md` writes the page anew; `… NAME` prints the rows of some families.
Everything is compared in fp32 with transformers and PEFT, which take one sequence at a time: log-probs per token, gradients, the likeliest
tokens, samples and merged models, with random LoRA factors.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from align.bases import context_length
from align.core.load import load_base, save_model
from align.core.merged import MergedCopy
from align.core.pack import pack
from align.core.roles import Roles
from align.core.rollout import Sampler
from align.core.targets import adapted_share, left_out, lora_config
from align.core.weights import auto_class
from align.data.examples import Example
from align.errors import AlignError

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "data/tiny-base"
VOCAB = 896
IDS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
USUAL: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.1,
    **IDS,
)
GPT2: dict[str, Any] = dict(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.1, **IDS)
HEADS = dict(head_dim=16)
WINDOW = dict(sliding_window=16)
ALTERNATE = dict(layer_types=["sliding_attention", "full_attention"], **WINDOW)
ROUTED: dict[str, Any] = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, topk_group=1)
ROUTED |= dict(first_k_dense_replace=1, n_shared_experts=1)
MLA = dict(num_key_value_heads=4, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
ROUTED = dict(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1, n_shared_experts=1, topk_group=1
)
DELTA = dict(
    **HEADS,
    num_hidden_layers=4,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
)
MAMBA = dict(mamba_n_heads=4, mamba_d_head=32, mamba_d_state=8, mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=8)
STATE: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, state_size=8, initializer_range=0.1, **IDS)
RWKV: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=64, attention_hidden_size=64, context_length=256, **IDS)
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
PIXELS = dict(**VISION, image_size=28, patch_size=14)
GEMMA3 = {**USUAL, **HEADS, **ALTERNATE, "query_pre_attn_scalar": 16}
GEMMA3N = {
    **USUAL,
    **HEADS,
    **ALTERNATE,
    **dict(intermediate_size=[96, 96], vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, num_kv_shared_layers=0),
    **dict(laurel_rank=8, altup_num_inputs=2, activation_sparsity_pattern=[0.0, 0.0]),
}
GEMMA4 = {
    **USUAL,
    **HEADS,
    **ALTERNATE,
    **dict(vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, global_head_dim=32, num_kv_shared_layers=0),
}
LLAMA4 = {
    **USUAL,
    **HEADS,
    **LOCAL,
    **dict(num_experts_per_tok=1, intermediate_size_mlp=96, interleave_moe_layer_step=2, attention_chunk_size=16, no_rope_layers=[1, 0]),
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **more))


def usual(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    merged = dict(USUAL)
    for part in parts:
        merged |= part
    return merged | more


LONGROPE = dict(partial_rotary_factor=0.75, short_factor=[1.0] * 6, long_factor=[4.0] * 6, original_max_position_embeddings=80)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", usual()),
    "Llama, YaRN": ("llama", usual(rope("yarn", factor=4.0, original_max_position_embeddings=64))),
    "Llama 3.1 rope": (
        "llama",
        usual(rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),
    ),
    "Llama, dynamic NTK": ("llama", usual(rope("dynamic", factor=8.0), max_position_embeddings=80)),
    "Llama 4 text": ("llama4_text", {**LLAMA4, "use_qk_norm": True, "floor_scale": 8}),
    "Llama 4": (
        "llama4",
        dict(text_config=LLAMA4, vision_config=dict(**PIXELS, projector_input_dim=32, projector_output_dim=32, vision_output_dim=32)),
    ),
    "Qwen2": ("qwen2", usual()),
    "Qwen2, sliding": ("qwen2", usual(WINDOW, use_sliding_window=True, max_window_layers=1)),
    "Qwen2-MoE": ("qwen2_moe", usual(EXPERTS, shared_expert_intermediate_size=48)),
    "Qwen3": ("qwen3", usual(HEADS)),
    "Qwen3-MoE": ("qwen3_moe", usual(HEADS, EXPERTS)),
    "Qwen3-Next": ("qwen3_next", usual(DELTA, EXPERTS, shared_expert_intermediate_size=32)),
    "Qwen3.5 text": ("qwen3_5_text", usual(DELTA)),
    "Qwen3.5": (
        "qwen3_5",
        dict(
            text_config=usual(DELTA),
            vision_config=dict(hidden_size=32, intermediate_size=48, depth=2, num_heads=2, out_hidden_size=64, patch_size=14),
        ),
    ),
    "Mistral": ("mistral", usual(WINDOW)),
    "Ministral 3": ("ministral3", usual(HEADS)),
    "Mistral 3": (
        "mistral3",
        dict(text_config=dict(model_type="mistral", **usual(HEADS)), vision_config=dict(model_type="pixtral", **PIXELS)),
    ),
    "Mixtral": ("mixtral", usual(LOCAL)),
    "Gemma": ("gemma", usual(HEADS)),
    "Gemma 2": ("gemma2", usual(HEADS, WINDOW, query_pre_attn_scalar=16)),
    "Gemma 3 text": ("gemma3_text", GEMMA3),
    "Gemma 3": (
        "gemma3",
        dict(
            text_config=GEMMA3,
            vision_config=PIXELS,
            **dict(mm_tokens_per_image=4, image_token_index=880, boi_token_index=881, eoi_token_index=882),
        ),
    ),
    "Gemma 3n text": ("gemma3n_text", GEMMA3N),
    "Gemma 4 text": ("gemma4_text", GEMMA4),
    "Gemma 4": ("gemma4", dict(text_config=GEMMA4, vision_config=dict(**VISION, head_dim=16, num_key_value_heads=2), audio_config=None)),
    "Phi": ("phi", usual()),
    "Phi-3": ("phi3", usual(WINDOW)),
    "Phi-3, longrope": ("phi3", usual(rope("longrope", **LONGROPE), sliding_window=None, original_max_position_embeddings=80)),
    "Phi-MoE": ("phimoe", usual(LOCAL)),
    "GPT-2": ("gpt2", GPT2),
    "GPT-BigCode": ("gpt_bigcode", GPT2),
    "GPT-Neo": (
        "gpt_neo",
        dict(
            **dict(vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
            **dict(window_size=16, max_position_embeddings=256, initializer_range=0.1, **IDS),
        ),
    ),
    "GPT-NeoX": ("gpt_neox", usual()),
    "GPT-J": ("gptj", {**GPT2, "rotary_dim": 8}),
    "CodeGen": ("codegen", {**GPT2, "rotary_dim": 8}),
    "OPT": ("opt", usual(ffn_dim=96, word_embed_proj_dim=64, init_std=0.1)),
    "OPT-350m": ("opt", usual(ffn_dim=96, word_embed_proj_dim=32, init_std=0.1, do_layer_norm_before=False)),
    "Bloom": ("bloom", dict(vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.1, **IDS)),
    "Falcon": ("falcon", usual(multi_query=True, parallel_attn=True, alibi=False)),
    "Falcon 40B": ("falcon", usual(new_decoder_architecture=True, num_kv_heads=2, alibi=False)),
    "Falcon-RW": ("falcon", usual(alibi=True, multi_query=False, parallel_attn=False, bias=True)),
    "MPT": ("mpt", dict(vocab_size=VOCAB, d_model=64, n_heads=4, n_layers=2, max_seq_len=256, initializer_range=0.1, **IDS)),
    "StableLM": ("stablelm", usual()),
    "Granite": ("granite", usual(embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.3, attention_multiplier=0.1)),
    "Granite-MoE": ("granitemoe", usual(LOCAL, logits_scaling=3.0, attention_multiplier=0.2)),
    "Granite hybrid": (
        "granitemoehybrid",
        usual(LOCAL, MAMBA, shared_intermediate_size=64, layer_types=["mamba", "attention"], attention_multiplier=0.2),
    ),
    "Cohere": ("cohere", usual(logit_scale=0.5)),
    "Cohere 2": ("cohere2", usual(ALTERNATE, logit_scale=0.5)),
    "OLMo": ("olmo", usual()),
    "OLMo 2": ("olmo2", usual()),
    "OLMo 3": ("olmo3", usual(ALTERNATE)),
    "OLMoE": ("olmoe", usual(num_experts=4, num_experts_per_tok=2)),
    "SmolLM3": ("smollm3", usual(no_rope_layers=[1, 0])),
    "GLM": ("glm", usual(HEADS, partial_rotary_factor=0.5)),
    "GLM-4": ("glm4", usual(HEADS, partial_rotary_factor=0.5)),
    "GLM-4-MoE": ("glm4_moe", usual(HEADS, ROUTED, n_group=1)),
    "DeepSeek-V2": ("deepseek_v2", usual(MLA, ROUTED, q_lora_rank=24, topk_method="greedy", n_group=1)),
    "DeepSeek-V3": ("deepseek_v3", usual(MLA, ROUTED, q_lora_rank=24, n_group=2)),
    "MiniCPM3": ("minicpm3", usual(MLA, q_lora_rank=24)),
    "Nemotron": ("nemotron", usual()),
    "Nemotron-H": (
        "nemotron_h",
        usual(
            HEADS,
            num_hidden_layers=3,
            layers_block_type=["mamba", "attention", "mlp"],
            **dict(mamba_num_heads=4, mamba_head_dim=32, ssm_state_size=8, n_groups=1, chunk_size=8, conv_kernel=4),
        ),
    ),
    "Starcoder 2": ("starcoder2", usual(WINDOW)),
    "gpt-oss": ("gpt_oss", usual(HEADS, ALTERNATE, LOCAL, rope("default"))),
    "Mamba": ("mamba", STATE),
    "Mamba 2": ("mamba2", {**STATE, **dict(num_heads=4, head_dim=32, expand=2, n_groups=1, chunk_size=8)}),
    "Falcon-Mamba": ("falcon_mamba", STATE),
    "Falcon-H1": (
        "falcon_h1",
        usual(HEADS, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
    ),
    "RWKV-4": ("rwkv", {**RWKV, "num_hidden_layers": 7}),
    "RWKV-4, up to 6 layers": ("rwkv", {**RWKV, "num_hidden_layers": 2}),
    "Jamba": (
        "jamba",
        usual(
            **dict(num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1),
            **dict(num_experts=4, num_experts_per_tok=2, mamba_d_state=8, use_mamba_kernels=False),
        ),
    ),
    "LFM2": ("lfm2", usual(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)),
    "LFM2-MoE": ("lfm2_moe", usual(EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1)),
    "Zamba 2": (
        "zamba2",
        usual(
            **dict(num_hidden_layers=4, num_key_value_heads=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"]),
            **dict(mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, mamba_headdim=32, num_mem_blocks=1, chunk_size=8),
            **dict(attention_head_dim=32, adapter_rank=8, use_mem_rope=True),
        ),
    ),
    "Bamba": ("bamba", usual(MAMBA, attn_layer_indices=[1])),
    "RecurrentGemma": ("recurrent_gemma", usual(num_hidden_layers=3, lru_width=64, attention_window_size=16, num_key_value_heads=1)),
    "Hunyuan": ("hunyuan_v1_dense", usual(HEADS)),
    "Ernie 4.5": ("ernie4_5", usual(HEADS)),
    "Exaone 4": ("exaone4", usual(ALTERNATE)),
    "Seed-OSS": ("seed_oss", usual(HEADS)),
    "MiniMax-M2": ("minimax_m2", usual(HEADS, LOCAL)),
    "Kimi-Linear": (
        "kimi_linear",
        usual(
            MLA,
            ROUTED,
            **dict(num_hidden_layers=4, num_experts=4, linear_num_heads=2, linear_head_dim=16),
            layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        ),
    ),
    "Arcee": ("arcee", usual()),
    "Apertus": ("apertus", usual()),
    "Helium": ("helium", usual(HEADS)),
    "Nanochat": ("nanochat", usual()),
    "BitNet": ("bitnet", usual()),
    "DiffLlama": ("diffllama", usual()),
    "XGLM": (
        "xglm",
        dict(vocab_size=VOCAB, d_model=64, ffn_dim=96, num_layers=2, attention_heads=4, max_position_embeddings=256, init_std=0.1, **IDS),
    ),
    "BERT": ("bert", usual(num_key_value_heads=4)),
    "RoBERTa": ("roberta", usual(num_key_value_heads=4)),
    "BART": (
        "bart",
        dict(
            **dict(vocab_size=VOCAB, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4),
            **dict(encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=256, init_std=0.1, **IDS),
        ),
    ),
    "T5": ("t5", dict(vocab_size=VOCAB, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, eos_token_id=1, pad_token_id=2)),
}
QUICK = (
    *("Llama", "Llama 4", "Gemma 3", "Gemma 3n text", "Gemma 4", "GPT-2", "Falcon", "DeepSeek-V3", "Phi-3, longrope"),
    *("Qwen3-MoE", "gpt-oss", "DiffLlama", "Mamba 2", "Zamba 2", "RWKV-4", "RWKV-4, up to 6 layers", "Kimi-Linear", "T5"),
)
"""One of each kind; the others take minutes."""


def build(name: str, folder: Path) -> None:
    """A base folder with large random weights, so that attention is far from uniform, and tiny-base's tokenizer."""
    kind, settings = FAMILIES[name]
    config = CONFIG_MAPPING[kind](**settings)
    torch.manual_seed(1)
    parts = hasattr(config, "vision_config")
    auto = AutoModelForSeq2SeqLM if kind in ("t5", "bart") else AutoModelForImageTextToText if parts else AutoModelForCausalLM
    model = auto.from_config(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            of_recurrence = any(word in key for word in ("A_log", "dt_bias", "time_", "decay", "conv"))
            if parameter.ndim > 1 and parameter.std() < 0.05 and not of_recurrence:
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1 and not of_recurrence:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / file, folder / file)


TOGETHER = {
    "all": "together",
    "equal lengths": "prompts of one length together",
    "equal lengths without a cache": "by whole forwards",
    "none": "one row at a time",
}


@dataclass
class Found:
    """What was found out about a family: how it runs, in words, and the largest differences from transformers and PEFT."""

    how: str
    adapts: str
    samples: str
    worst: dict[str, float]

    @property
    def inexact(self) -> list[str]:
        """What differs by more than rounding, whose size is tried: it is larger in deep recurrences and where activations are large."""
        noise = self.worst.get("noise", 0.0)
        allowed = {"log-probs": max(3e-6, 3 * noise), "gradients": max(2e-6, noise), "greedy": 0.0, "noise": noise}
        return [f"{k}: {v:.1e}" for k, v in self.worst.items() if v > allowed.get(k, max(7e-6, 5 * noise))]

    def row(self, name: str) -> str:
        return f"| {name} | {self.how} | {self.adapts} | {self.samples} |"


def examine(name: str, folder: Path, experts: bool = False) -> Found:
    """Build a family's model in `folder` and try everything. `experts`: with adapters on routed experts too."""
    build(name, folder / "base")
    try:
        roles = Roles(load_base(folder / "base", quantize=None, dtype=torch.float32))
        return _compared(roles, folder, experts)
    except AlignError as error:
        return Found(f"refused: {str(error).replace(str(folder / 'base'), name)}", "", "", {})


def _compared(roles: Roles, folder: Path, experts: bool) -> Found:
    base = roles.base
    torch.manual_seed(0)
    for adapter in ("policy", "other"):  # the second is what must not matter
        roles.add_adapter(adapter, lora_config(4, 8, "all-linear", 0.0, base, experts=experts))
        roles.assign(adapter, [adapter])
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.02)
    roles.save_adapter("policy", folder / "adapter", "base")
    roles.train_only("policy")
    alone = PeftModel.from_pretrained(plain(folder / "base"), str(folder / "adapter"), is_trainable=True).eval()
    examples = list(rows(min(256, context_length(folder / "base"))))
    worst = {
        **_training(roles, alone, examples),
        **_sampling(roles, alone, examples),
        "merged": _merging(roles, alone, examples, folder),
        "noise": noise(folder / "base"),
    }
    adapts = f"{adapted_share(base, roles.configs['policy']):.0%}"
    adapts += ", without experts" if left_out(base, roles.configs["policy"]) else ", with experts" if experts else ""
    return Found("packed" if roles.packed else "padded", adapts, TOGETHER[roles.sampled_together(base, 2)], worst)


def plain(folder: Path) -> Any:
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32).eval()


def rows(longest: int) -> Iterator[Example]:
    """Pairs of random answers, of several lengths, within `longest` tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = lambda n: torch.randint(3, 880, (n,), generator=generator).tolist()  # noqa: E731
    for prompt, *answers in ((9, 20, 12), (9, 7, 5), (min(30, longest // 2), 11, min(40, longest // 2)), (4, 6, 3)):
        head = ids(prompt)
        sequences = tuple(tuple(head + ids(n)) for n in answers)
        yield Example(sequences, tuple(tuple([False] * prompt + [True] * n) for n in answers), prompt)


def logprobs(model: Any, sequence: Any, start: int) -> Tensor:
    """Of the tokens from `start` on, by transformers, in fp64 from its logits."""
    logits = model(input_ids=torch.tensor([list(sequence)]), use_cache=False).logits[0].double()
    return torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(sequence[1:])[:, None])[start - 1 :, 0]


def _training(roles: Roles, alone: Any, examples: list[Example]) -> dict[str, float]:
    """Differences in log-probs, and in gradients relative to the largest."""
    want = [logprobs(alone, s, e.shared) for e in examples for s in e.sequences]
    torch.cat(want).sum().backward()
    batch = pack(examples)
    got = roles.logprobs("policy", batch)
    got.sum().backward()
    pieces = [piece[mask] for piece, mask in zip(batch.split(got.detach()), batch.split(batch.loss_mask), strict=True)]
    theirs = {k.replace("base_model.model.", "").replace(".default", ""): p.grad for k, p in alone.named_parameters() if "lora_" in k}
    ours = {k.replace(".policy", ""): p.grad for k, p in roles.base.named_parameters() if ".policy." in k}
    assert set(ours) == set(theirs)
    idle = [k for k, grad in ours.items() if "lora_B" in k and "experts" not in k and (grad is None or not grad.any())]
    assert not idle, f"no gradient: {idle[:3]}"
    scale = max(float(grad.abs().max()) for grad in theirs.values() if grad is not None)
    zero = torch.zeros(())
    gaps = [float(((ours[k] if ours[k] is not None else zero) - (theirs[k] if theirs[k] is not None else zero)).abs().max()) for k in ours]
    return {
        "log-probs": max(float((a.double() - b.detach()).abs().max()) for a, b in zip(pieces, want, strict=True)),
        "gradients": max(gaps) / scale,
    }


@torch.no_grad()
def _sampling(roles: Roles, alone: Any, examples: list[Example]) -> dict[str, float]:
    """Difference of samples' log-probs from transformers', and the share of greedy tokens that are not transformers' likeliest."""
    prompts = [list(e.sequences[0][: e.shared]) for e in examples]
    sampler = Sampler(roles, "policy", [1], 2)
    torch.manual_seed(0)
    gaps, other, total = [0.0], 0, 0
    for prompt, answers in zip(prompts, sampler(prompts, n=3, max_new_tokens=20, temperature=1.0), strict=True):
        for answer in answers:
            want = logprobs(alone, prompt + answer.ids, len(prompt))
            gaps.append(float((want - torch.tensor(answer.logprobs).double()).abs().max()))
    for prompt, (answer,) in zip(prompts, sampler(prompts, n=1, max_new_tokens=12, temperature=0.0), strict=True):
        logits = alone(input_ids=torch.tensor([prompt + answer.ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        other, total = other + int((logits.argmax(-1) != torch.tensor(answer.ids)).sum()), total + len(answer.ids)
    return {"samples": max(gaps), "greedy": other / total}


@torch.no_grad()
def _merging(roles: Roles, alone: Any, examples: list[Example], folder: Path) -> float:
    copied = MergedCopy(roles, "policy").merged()
    save_model(copied, folder / "merged", "fp32", {"stop_ids": [1], "pad_token_id": 2})
    again = plain(folder / "merged")
    sequences = [s for e in examples for s in e.sequences]
    return max(float((logprobs(again, s, 1) - logprobs(alone, s, 1)).abs().max()) for s in sequences)


@torch.no_grad()
def noise(folder: Path) -> float:
    """By how much log-probs move when every weight is rounded another way: all computations differ by at least that."""
    model, sequence = plain(folder), max((s for e in rows(80) for s in e.sequences), key=len)
    before, generator = logprobs(model, sequence, 1), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.mul_(1 + 2**-23 * torch.randint(-1, 2, parameter.shape, generator=generator))
    return float((logprobs(model, sequence, 1) - before).abs().max())


HEAD = """# Families

What Align does with each family of models that transformers knows, found out on tiny random models in fp32 by
`python -m tests.core.families`, which wrote this page; `tests/core/test_families.py` holds it to that (`pytest -m slow` for all rows).

**packed**: rows share a forward without padding, and answers the computation of their prompt. **padded**: one row per sequence, for what
packed attention does not cover. Both give transformers' and PEFT's own log-probs, of one sequence at a time, within 3e-6 per token, their
gradients within 2e-6 of the largest, their likeliest tokens, and samples and merged models within 7e-6; or within a few times what another
rounding of every weight changes, where that is more, as in deep recurrences. **refused**: in one sentence, before anything trains.

Adapted by `lora.targets: all-linear` are the linear layers that run when the decoder reads text, never the head, the embeddings or a tower
for images: of the decoder's matrices the share that stands here. Left out are Mamba's `out_proj`, which PEFT refuses, matrices that layers
share (Zamba 2), and routed experts, which are most of a mixture of experts; `lora.experts: true` adapts those too. Where a base's padding
or cache disturbs rows, it samples them apart, which takes more time.

| family | runs | adapts | samples |
|---|---|---|---|
"""


def examined(name: str, experts: bool = False) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        return examine(name, Path(folder), experts)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:]
    if not names:
        print(HEAD, end="")
    for name in names or FAMILIES:
        found = examined(name)
        print(found.row(name), flush=True)
        print(name, {k: f"{v:.1e}" for k, v in found.worst.items()}, *found.inexact, file=sys.stderr, flush=True)
