"""Models of Hugging Face's transformers, small, made from configurations of their own, with random weights.

Nothing is downloaded. What some ask of torchvision is declared, as for its own models.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.third_party import library, need

_TEXT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_TEXT |= {"vocab_size": 120, "max_position_embeddings": 64}
_DECODER = {"use_cache": False, **_TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
_EXPERTS = {**_DECODER, "experts_implementation": "batched_mm", "num_experts_per_tok": 2}
_VISION = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_VISION |= {"image_size": 32, "patch_size": 8}


@dataclass(frozen=True)
class Pretrained:
    """A model by the name of its class, the fields of its configuration, and what it is given."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "text"  # or "image", "pair" (a text and one that is written), "speech", "sound", "both" (text, image)
    size: int = 32  # of images, or frames of speech

    @property
    def configuration(self) -> str:
        """The name of the configuration's class."""
        named = re.match(r".+?(?=For[A-Z]|Model|Encoder|LMHead|VisionModel|TextModel)", self.name)
        assert named is not None
        part = re.search(r"(Vision|Text)Model", self.name)
        return f"{named[0]}{part[1] if part else ''}Config"

    def create(self, **others: Any) -> nn.Module:
        """Return it in evaluation mode with weights of seed 0; others are fields of the configuration."""
        need("transformers")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        library("torchvision")
        transformers = importlib.import_module("transformers")
        config = getattr(transformers, self.configuration)(**{**self.config, **others})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _class(transformers, self.name, config)(config).eval()

    def inputs(self) -> dict[str, Tensor]:
        """Return a batch of two."""
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(3, 100, (2, 12), generator=generator)
        words[:, -1] = 2  # the end of a text, where some models look
        mask = torch.ones(2, 12, dtype=torch.long)
        mask[1, 9:] = 0
        images = torch.randn(2, 3, self.size, self.size, generator=generator)
        return {
            "text": {"input_ids": words, "attention_mask": mask},
            "words": {"input_ids": words},
            "image": {"pixel_values": images},
            "pair": {"input_ids": words, "attention_mask": mask, "decoder_input_ids": words[:, :7]},
            "speech": {"input_features": torch.randn(2, 80, self.size, generator=generator)},
            "sound": {"input_values": torch.randn(2, 640, generator=generator)},
            "both": {"input_ids": words, "pixel_values": images, "attention_mask": torch.ones_like(mask)},
        }[self.kind]


def _class(transformers: Any, name: str, config: Any) -> Any:
    with contextlib.suppress(AttributeError):
        return getattr(transformers, name)
    return getattr(importlib.import_module(type(config).__module__.replace("configuration", "modeling")), name)


_T5 = {"use_cache": False, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 120}
_GPT2 = {
    "use_cache": False,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 120,
    "n_positions": 64,
    "pad_token_id": 0,
}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_WHISPER = {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
_WHISPER |= {"max_source_positions": 30, "vocab_size": 120, "decoder_layers": 2, "decoder_attention_heads": 4}
_WHISPER |= {"decoder_ffn_dim": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WHISPER |= {"decoder_start_token_id": 1}
_BART = {"use_cache": False, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
_BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 120}
_BART |= {"max_position_embeddings": 64, "pad_token_id": 0}
_SEGFORMER = {"hidden_sizes": [16, 24, 32, 48], "num_attention_heads": [1, 2, 4, 4], "depths": [2, 1, 1, 1]}
_SEGFORMER |= {"decoder_hidden_size": 32}
# Those that are named in the promise come first.
MODELS = (
    Pretrained("BertForSequenceClassification", _TEXT),
    Pretrained(
        "DistilBertForSequenceClassification",
        {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "vocab_size": 120, "max_position_embeddings": 64},
    ),
    Pretrained("ViTForImageClassification", _VISION, "image"),
    Pretrained("DeiTForImageClassification", _VISION, "image"),
    Pretrained("SwinForImageClassification", _SWIN, "image"),
    Pretrained(
        "ConvNextForImageClassification", {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1]}, "image", 64
    ),
    Pretrained("SegformerForSemanticSegmentation", _SEGFORMER, "image", 64),
    Pretrained("GPT2LMHeadModel", _GPT2),
    Pretrained("T5ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0}, "pair"),
    Pretrained("LlamaForCausalLM", _DECODER),
    Pretrained("WhisperEncoder", _WHISPER, "speech", 60),
    Pretrained("BertModel", _TEXT),
    Pretrained("ViTModel", _VISION, "image"),
    Pretrained("T5EncoderModel", _T5),
    Pretrained("WhisperForAudioClassification", _WHISPER, "speech", 60),
    Pretrained("DeiTForImageClassificationWithTeacher", _VISION, "image"),
    Pretrained("GPT2ForSequenceClassification", _GPT2),
    Pretrained("RobertaForSequenceClassification", {**_TEXT, "pad_token_id": 1}),
    Pretrained("ElectraForSequenceClassification", {**_TEXT, "embedding_size": 32}),
    Pretrained("AlbertForSequenceClassification", {**_TEXT, "embedding_size": 32}),
    Pretrained("MPNetForSequenceClassification", _TEXT),
    Pretrained(
        "ModernBertForSequenceClassification", {**_TEXT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    ),
    Pretrained(
        "DebertaV2ForSequenceClassification", {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    ),
    Pretrained("MistralForCausalLM", _DECODER),
    Pretrained("Qwen2ForCausalLM", _DECODER),
    Pretrained("Qwen3ForCausalLM", {**_DECODER, "head_dim": 12}),
    Pretrained("GemmaForCausalLM", {**_DECODER, "head_dim": 12}),
    Pretrained("Phi3ForCausalLM", _DECODER),
    Pretrained("GPTNeoXForCausalLM", {**_TEXT, "use_cache": False}),
    Pretrained(
        "BloomForCausalLM",
        {"use_cache": False, "hidden_size": 48, "n_layer": 3, "n_head": 4, "vocab_size": 120, "pad_token_id": 0},
    ),
    Pretrained(
        "RwkvForCausalLM",  # weights that it scales itself after some layers would be fixed
        {**_TEXT, "use_cache": False, "attention_hidden_size": 48, "rescale_every": 0, "context_length": 16},
        kind="words",
    ),
    Pretrained(
        "MambaForCausalLM",
        {"use_cache": False, "hidden_size": 48, "num_hidden_layers": 3, "vocab_size": 120, "state_size": 8},
        kind="words",
    ),
    Pretrained("MixtralForCausalLM", {**_EXPERTS, "num_local_experts": 4}),
    Pretrained("GptOssForCausalLM", {**_EXPERTS, "num_local_experts": 4, "head_dim": 12}),
    Pretrained(
        "DeepseekV3ForCausalLM",
        {
            **_EXPERTS,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 24,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    Pretrained(
        "OPTForCausalLM",
        {
            "use_cache": False,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 96,
            "vocab_size": 120,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 48,
            "pad_token_id": 0,
        },
    ),
    Pretrained("BartForConditionalGeneration", {**_BART, "decoder_start_token_id": 1}, "pair"),
    Pretrained("CLIPVisionModelWithProjection", {**_VISION, "projection_dim": 24}, "image"),
    Pretrained("CLIPTextModelWithProjection", {**_TEXT, "projection_dim": 24, "eos_token_id": 2}),
    Pretrained("BeitForImageClassification", _VISION, "image"),
    Pretrained("Dinov2ForImageClassification", {**_VISION, "mlp_ratio": 2}, "image"),
    Pretrained(
        "ConvNextV2ForImageClassification", {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1]}, "image", 64
    ),
    Pretrained("SwinForMaskedImageModeling", _SWIN, "image"),
    Pretrained("Swinv2ForImageClassification", _SWIN, "image"),
    Pretrained(
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        "image",
    ),
    Pretrained(
        "PoolFormerForImageClassification", {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}, "image", 64
    ),
    Pretrained("MobileViTForImageClassification", {"image_size": 64}, "image", 64),
    Pretrained("MobileNetV2ForImageClassification", {"image_size": 64, "depth_multiplier": 0.35}, "image", 64),
    Pretrained(
        "Wav2Vec2ForSequenceClassification",
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "conv_dim": [16, 16, 16],
            "conv_stride": [5, 2, 2],
            "conv_kernel": [10, 3, 3],
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "classifier_proj_size": 24,
            "apply_spec_augment": False,
        },
        "sound",
    ),
)
