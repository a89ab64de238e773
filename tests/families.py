"""Tiny classifiers of the families of transformers, from configuration, and what a study adapts in
each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf

from conftest import SIZES

TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2}
COMMON: dict[str, Any] = {
    **SIZES, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip
DECODER: dict[str, Any] = {**COMMON, **TOKENS, "num_key_value_heads": 1}
SEQ2SEQ: dict[str, Any] = {
    **SIZES, **TOKENS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
}  # fmt: skip
DEBERTA: dict[str, Any] = {
    **COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
T5GEMMA: dict[str, Any] = {
    **DECODER,
    "head_dim": 8,
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
}


@dataclass(frozen=True)
class Family:
    config: Callable[[], hf.PreTrainedConfig]
    targets: tuple[str, ...]

    def model(self) -> hf.PreTrainedModel:
        config = self.config()
        config.num_labels = 2  # BART's default is 3
        return hf.AutoModelForSequenceClassification.from_config(config)


FAMILIES = {
    "bert": Family(lambda: hf.BertConfig(**COMMON), ("query", "value")),
    "roberta": Family(lambda: hf.RobertaConfig(**COMMON, **TOKENS), ("query", "value")),
    "xlm-r": Family(lambda: hf.XLMRobertaConfig(**COMMON, **TOKENS), ("query", "value")),
    "distilbert": Family(
        lambda: hf.DistilBertConfig(
            **SIZES, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40
        ),
        ("q_lin", "v_lin"),
    ),
    "electra": Family(lambda: hf.ElectraConfig(**COMMON, embedding_size=8), ("query", "value")),
    "albert": Family(lambda: hf.AlbertConfig(**COMMON, embedding_size=8), ("query", "value")),
    "mpnet": Family(lambda: hf.MPNetConfig(**COMMON, **TOKENS), ("q", "v")),
    "deberta-v2": Family(
        lambda: hf.DebertaV2Config(**DEBERTA, max_relative_positions=12, conv_kernel_size=3),
        ("query_proj", "value_proj"),
    ),
    "deberta-v3": Family(
        lambda: hf.DebertaV2Config(
            **DEBERTA, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True
        ),
        ("query_proj", "value_proj"),
    ),
    "modernbert": Family(
        lambda: hf.ModernBertConfig(
            **COMMON, **TOKENS, cls_token_id=0, sep_token_id=2, global_attn_every_n_layers=2,
            local_attention=4
        ),
        ("Wqkv",),
    ),
    "longformer": Family(
        lambda: hf.LongformerConfig(**COMMON, **TOKENS, attention_window=[4, 4]), ("query", "value")
    ),
    "bigbird": Family(
        lambda: hf.BigBirdConfig(**COMMON, **TOKENS, attention_type="original_full"),
        ("query", "value")
    ),
    "roformer": Family(lambda: hf.RoFormerConfig(**COMMON, embedding_size=16), ("query", "value")),
    "xlnet": Family(
        lambda: hf.XLNetConfig(**SIZES, **TOKENS, d_model=16, n_layer=2, n_head=2, d_inner=24),
        ("layer_1", "layer_2"),
    ),
    "funnel": Family(
        lambda: hf.FunnelConfig(
            **SIZES, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24,
            num_decoder_layers=1
        ),
        ("q_head", "v_head"),
    ),
    "t5": Family(
        lambda: hf.T5Config(
            **SIZES, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, eos_token_id=2,
            decoder_start_token_id=1
        ),
        ("q", "v"),
    ),
    "bart": Family(lambda: hf.BartConfig(**SEQ2SEQ, forced_eos_token_id=2), ("q_proj", "v_proj")),
    "gpt2": Family(
        lambda: hf.GPT2Config(**SIZES, **TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=40),
        ("c_attn",)
    ),
    "gpt-neox": Family(lambda: hf.GPTNeoXConfig(**COMMON, **TOKENS), ("query_key_value",)),
    "opt": Family(
        lambda: hf.OPTConfig(
            **SIZES, **TOKENS, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24, max_position_embeddings=40,
        ),
        ("q_proj", "v_proj"),
    ),
    "bloom": Family(
        lambda: hf.BloomConfig(**SIZES, **TOKENS, hidden_size=16, n_layer=2, n_head=2),
        ("query_key_value",)
    ),
    "llama": Family(lambda: hf.LlamaConfig(**DECODER), ("q_proj", "v_proj")),
    "mistral": Family(lambda: hf.MistralConfig(**DECODER, sliding_window=4), ("q_proj", "v_proj")),
    "mixtral": Family(
        lambda: hf.MixtralConfig(**DECODER, num_local_experts=3, num_experts_per_tok=2),
        ("q_proj", "v_proj")
    ),
    "qwen2": Family(lambda: hf.Qwen2Config(**DECODER), ("q_proj", "v_proj")),
    "qwen3": Family(lambda: hf.Qwen3Config(**DECODER, head_dim=8), ("q_proj", "v_proj")),
    "gemma": Family(lambda: hf.GemmaConfig(**DECODER, head_dim=8), ("q_proj", "v_proj")),
    "gemma2": Family(
        lambda: hf.Gemma2Config(
            **DECODER, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0,
            query_pre_attn_scalar=1
        ),
        ("q_proj", "v_proj"),
    ),
    # reads padding: what stands beside a row in its batch moves its logits
    "convbert": Family(lambda: hf.ConvBertConfig(**COMMON, embedding_size=16), ("query", "value")),
    "fnet": Family(  # no attention, so no mask and no heads
        lambda: hf.FNetConfig(
            **{k: v for k, v in COMMON.items() if k != "num_attention_heads"},
            tpu_short_seq_length=40
        ),
        ("intermediate.dense", "output.dense"),
    ),
    "canine": Family(  # hashes characters: no table of embeddings that a token could lie beyond
        lambda: hf.CanineConfig(**COMMON, **TOKENS, upsampling_kernel_size=2, downsampling_rate=2,
            local_transformer_stride=8, num_hash_buckets=16),
        ("query", "value"),
    ),
    "gemma3": Family(  # its sizes stand in the configuration's part for text
        lambda: hf.Gemma3Config(
            text_config=hf.Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=4),
            vision_config={
                "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 24, "image_size": 28, "patch_size": 14,
            },
            mm_tokens_per_image=4, image_token_index=18, boi_token_index=17, eoi_token_index=16,
        ),
        ("q_proj", "v_proj"),
    ),
    "phi": Family(lambda: hf.PhiConfig(**DECODER), ("q_proj", "v_proj", "fc1", "fc2")),
    "deepseek-v2": Family(  # queries and keys come out of factors of their own
        lambda: hf.DeepseekV2Config(
            **{**DECODER, "num_key_value_heads": 2}, moe_intermediate_size=12, n_routed_experts=4,
            num_experts_per_tok=2, n_group=2, topk_group=1, q_lora_rank=8, kv_lora_rank=8,
            qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        ),
        ("q_a_proj", "kv_b_proj"),
    ),
    "qwen3-next": Family(  # linear attention, which holds a state, and experts beside a shared one
        lambda: hf.Qwen3NextConfig(
            **DECODER, head_dim=8, layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, moe_intermediate_size=12, shared_expert_intermediate_size=12,
            num_experts=3, num_experts_per_tok=2,
        ),
        ("q_proj", "v_proj", "out_proj"),
    ),
    "zamba2": Family(  # Mamba 2, and one block of attention under several names
        lambda: hf.Zamba2Config(
            **{**DECODER, "num_key_value_heads": 2, "num_hidden_layers": 4},
            layers_block_type=["linear_attention", "hybrid"] * 2, use_mamba_kernels=False,
            mamba_d_state=4, n_mamba_heads=2, chunk_size=4, adapter_rank=4,
        ),
        ("q_proj", "v_proj"),
    ),
    "t5gemma": Family(  # two configurations in one
        lambda: hf.T5GemmaConfig(
            encoder=T5GEMMA, decoder=T5GEMMA, **TOKENS, **SIZES,
        ),
        ("q_proj", "v_proj"),
    ),
}  # fmt: skip
