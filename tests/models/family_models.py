"""Tiny random models of the families that transformers knows, hidden size 64, with tiny-base's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

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
GPT2: dict[str, Any] = dict(
    vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.1, **IDS
)
HEADS = dict(head_dim=16)
WINDOW = dict(sliding_window=16)
ALTERNATE = dict(layer_types=["sliding_attention", "full_attention"], **WINDOW)
ROUTED: dict[str, Any] = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, topk_group=1)
ROUTED |= dict(first_k_dense_replace=1, n_shared_experts=1)
MLA = dict(num_key_value_heads=4, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
ROUTED = dict(
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    first_k_dense_replace=1,
    n_shared_experts=1,
    topk_group=1,
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
STATE: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, state_size=8, initializer_range=0.1, **IDS
)
RWKV: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=64, attention_hidden_size=64, context_length=256, **IDS)
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
PIXELS = dict(**VISION, image_size=28, patch_size=14)
BART: dict[str, Any] = dict(
    **dict(
        vocab_size=VOCAB,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    ),
    **dict(
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=256,
        init_std=0.1,
        decoder_start_token_id=2,
        **IDS,
    ),
)
T5: dict[str, Any] = dict(vocab_size=VOCAB, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
T5 |= dict(eos_token_id=1, pad_token_id=2, decoder_start_token_id=2)
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
GEMMA2 = {**USUAL, **HEADS, **WINDOW, "query_pre_attn_scalar": 16}
GEMMA3 = {**USUAL, **HEADS, **ALTERNATE, "query_pre_attn_scalar": 16}
ROPES = {kind: dict(rope_type="default", rope_theta=10000.0) for kind in ("sliding_attention", "full_attention")}
GEMMA3N = {
    **USUAL,
    **HEADS,
    **ALTERNATE,
    **dict(
        intermediate_size=[96, 96],
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    ),
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
    **dict(
        num_experts_per_tok=1,
        intermediate_size_mlp=96,
        interleave_moe_layer_step=2,
        attention_chunk_size=16,
        no_rope_layers=[1, 0],
    ),
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **more))


def usual(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    merged = dict(USUAL)
    for part in parts:
        merged |= part
    return merged | more


LONGROPE = dict(
    partial_rotary_factor=0.75, short_factor=[1.0] * 6, long_factor=[4.0] * 6, original_max_position_embeddings=80
)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", usual()),
    "Llama, YaRN": ("llama", usual(rope("yarn", factor=4.0, original_max_position_embeddings=64))),
    "Llama 3.1 rope": (
        "llama",
        usual(
            rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
        ),
    ),
    "Llama, dynamic NTK": ("llama", usual(rope("dynamic", factor=8.0), max_position_embeddings=80)),
    "Llama 4 text": ("llama4_text", {**LLAMA4, "use_qk_norm": True, "floor_scale": 8}),
    "Llama 4": (
        "llama4",
        dict(
            text_config=LLAMA4,
            vision_config=dict(**PIXELS, projector_input_dim=32, projector_output_dim=32, vision_output_dim=32),
        ),
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
            vision_config=dict(
                hidden_size=32, intermediate_size=48, depth=2, num_heads=2, out_hidden_size=64, patch_size=14
            ),
        ),
    ),
    "Mistral": ("mistral", usual(WINDOW)),
    "Ministral 3": ("ministral3", usual(HEADS)),
    "Mistral 3": (
        "mistral3",
        dict(
            text_config=dict(model_type="mistral", **usual(HEADS)), vision_config=dict(model_type="pixtral", **PIXELS)
        ),
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
    "Gemma 4": (
        "gemma4",
        dict(text_config=GEMMA4, vision_config=dict(**VISION, head_dim=16, num_key_value_heads=2), audio_config=None),
    ),
    "Phi": ("phi", usual()),
    "Phi-3": ("phi3", usual(WINDOW)),
    "Phi-3, longrope": (
        "phi3",
        usual(rope("longrope", **LONGROPE), sliding_window=None, original_max_position_embeddings=80),
    ),
    "Phi-MoE": ("phimoe", usual(LOCAL)),
    "GPT-2": ("gpt2", GPT2),
    "GPT-BigCode": ("gpt_bigcode", GPT2),
    "GPT-Neo": (
        "gpt_neo",
        dict(
            **dict(
                vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
            ),
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
    "MPT": (
        "mpt",
        dict(vocab_size=VOCAB, d_model=64, n_heads=4, n_layers=2, max_seq_len=256, initializer_range=0.1, **IDS),
    ),
    "StableLM": ("stablelm", usual()),
    "Granite": (
        "granite",
        usual(embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.3, attention_multiplier=0.1),
    ),
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
        usual(
            HEADS,
            mamba_d_ssm=64,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=8,
        ),
    ),
    "RWKV-4": ("rwkv", {**RWKV, "num_hidden_layers": 7}),
    "RWKV-4, up to 6 layers": ("rwkv", {**RWKV, "num_hidden_layers": 2}),
    "Jamba": (
        "jamba",
        usual(
            **dict(
                num_hidden_layers=4,
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=1,
            ),
            **dict(num_experts=4, num_experts_per_tok=2, mamba_d_state=8, use_mamba_kernels=False),
        ),
    ),
    "LFM2": ("lfm2", usual(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)),
    "LFM2-MoE": ("lfm2_moe", usual(EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1)),
    "Zamba 2": (
        "zamba2",
        usual(
            **dict(
                num_hidden_layers=4, num_key_value_heads=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"]
            ),
            **dict(mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, mamba_headdim=32, num_mem_blocks=1, chunk_size=8),
            **dict(attention_head_dim=32, adapter_rank=8, use_mem_rope=True),
        ),
    ),
    "Bamba": ("bamba", usual(MAMBA, attn_layer_indices=[1])),
    "RecurrentGemma": (
        "recurrent_gemma",
        usual(num_hidden_layers=3, lru_width=64, attention_window_size=16, num_key_value_heads=1),
    ),
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
        dict(
            vocab_size=VOCAB,
            d_model=64,
            ffn_dim=96,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=256,
            init_std=0.1,
            **IDS,
        ),
    ),
    "BERT": ("bert", usual(num_key_value_heads=4)),
    "RoBERTa": ("roberta", usual(num_key_value_heads=4)),
    "T5": ("t5", T5),
    "T5 v1.1, Flan-T5": ("t5", {**T5, **GATED}),
    "mT5": ("mt5", {**T5, **GATED}),
    "UMT5": ("umt5", {**T5, **GATED}),
    "LongT5": ("longt5", {**T5, "local_radius": 8}),
    "T5Gemma": ("t5gemma", dict(encoder=GEMMA2, decoder=GEMMA2, vocab_size=VOCAB, **IDS)),
    "T5Gemma, encoder wider": (
        "t5gemma",
        dict(encoder={**GEMMA2, "hidden_size": 96}, decoder=GEMMA2, vocab_size=VOCAB, **IDS),
    ),
    "T5Gemma 2": (
        "t5gemma2",
        dict(
            encoder=dict(text_config={**GEMMA3, "rope_parameters": ROPES}, vision_config=PIXELS, mm_tokens_per_image=4),
            decoder={**GEMMA3, "rope_parameters": ROPES},
            **dict(image_token_index=880, eoi_token_index=882, **IDS),
        ),
    ),
    "BART": ("bart", BART),
    "mBART": ("mbart", {**BART, "decoder_start_token_id": 1}),
    "mBART, a language as start": ("mbart", {**BART, "decoder_start_token_id": 5}),
    "Marian": ("marian", BART),
    "Pegasus": ("pegasus", BART),
    "M2M-100": ("m2m_100", {**BART, "decoder_start_token_id": 1}),
    "Blenderbot": ("blenderbot", BART),
    "LED": (
        "led",
        {
            **BART,
            **dict(max_encoder_position_embeddings=256, max_decoder_position_embeddings=256, attention_window=[8, 8]),
        },
    ),
}
QUICK = (
    "Llama",
    "Llama 4",
    "Gemma 3",
    "Gemma 3n text",
    "Gemma 4",
    "GPT-2",
    "Falcon",
    "DeepSeek-V3",
    "Phi-3, longrope",
    "Qwen3-MoE",
    "gpt-oss",
    "DiffLlama",
    "Mamba 2",
    "Zamba 2",
    "RWKV-4",
    "RWKV-4, up to 6 layers",
    "Kimi-Linear",
    "T5",
    "T5Gemma",
    "BART",
)
"""One of each kind; the others take minutes."""


def build(name: str, folder: Path) -> None:
    """A base folder with large random weights, so that attention is far from uniform, and tiny-base's tokenizer."""
    kind, settings = FAMILIES[name]
    config = CONFIG_MAPPING[kind](**settings)
    torch.manual_seed(1)
    parts = hasattr(config, "vision_config")
    two = config.is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if two else AutoModelForImageTextToText if parts else AutoModelForCausalLM
    model = auto.from_config(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            of_recurrence = any(word in key for word in ("A_log", "dt_bias", "time_", "decay", "conv"))
            if parameter.ndim > 1 and parameter.std() < 0.05 and not of_recurrence:
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1 and not of_recurrence:
                parameter.add_(0.1 * torch.randn_like(parameter))
    if two and hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(0, 0.5)  # zeros in fresh models, not in published ones
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / file, folder / file)
