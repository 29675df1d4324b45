"""Tiny random models whose prompts a language model reads: Z-Image, Qwen-Image and FLUX.2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

WIDTH = 8
VOCABULARY = 512
TURNS = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
ANSWER = "<|im_start|>assistant\n"
UNTHINKING = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
QWEN_CHAT = f"{TURNS}{{% if add_generation_prompt %}}{ANSWER}{UNTHINKING}{{% endif %}}"
MISTRAL_CHAT = (
    "{% for turn in messages %}[{{ turn.role }}]{% for part in turn.content %}{{ part.text }}{% endfor %}{% endfor %}"
)
WORDS = ("a ohwx dog in the snow. a cat, at dawn, a robot", "system user assistant")


def z_image(vae: AutoencoderKL) -> DiffusionPipeline:
    """Z-Image: Qwen3, one stream, FLUX.1's autoencoder, a fixed shift."""
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 64, 64],
    )
    for pad_1D in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad_1D)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae,
        text_encoder=qwen3(Qwen3Model, layers=3),
        tokenizer=qwen_tokenizer(QWEN_CHAT),
        transformer=transformer,
    )


def qwen_image() -> DiffusionPipeline:
    """Qwen-Image: Qwen2.5-VL, an autoencoder of films, a shift that grows with the image."""
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[-0.8, 0.1, 1.0, -0.2],
        latents_std=[2.8, 0.5, 1.4, 1.1],
    )
    vae.register_to_config(sample_size=64)  # the real one says nothing of it
    template = QwenImagePipeline.__init__.__code__.co_consts
    (text,) = [each for each in template if isinstance(each, str) and each.startswith("<|im_start|>")]
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=qwen2_5_vl(),
        tokenizer=qwen_tokenizer(QWEN_CHAT, text),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            axes_dims_rope=(4, 2, 2),
        ),
    )


def flux2() -> DiffusionPipeline:
    """FLUX.2 dev: layers 10, 20 and 30 of Mistral 3, an embedded guidance."""
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_autoencoder(),
        text_encoder=mistral3(layers=31),
        tokenizer=qwen_tokenizer(MISTRAL_CHAT, SYSTEM_MESSAGE),
        transformer=flux2_transformer(guidance_embeds=True),
    )


def flux2_klein(is_distilled: bool) -> DiffusionPipeline:
    """FLUX.2 klein: layers 9, 18 and 27 of Qwen3."""
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_autoencoder(),
        text_encoder=qwen3(Qwen3ForCausalLM, layers=28),
        tokenizer=qwen_tokenizer(QWEN_CHAT),
        transformer=flux2_transformer(guidance_embeds=False),
        is_distilled=is_distilled,
    )


def flux2_autoencoder() -> AutoencoderKLFlux2:
    """FLUX.2's autoencoder; the statistics of its latents differ from place to place."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def flux2_transformer(guidance_embeds: bool) -> Flux2Transformer2DModel:
    """FLUX.2's transformer, with a block of each kind."""
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance_embeds,
    )


def mistral3(layers: int) -> Mistral3ForConditionalGeneration:
    """A Mistral 3, which could read images too."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 16}
    vision = {"model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4, **sizes}
    text = {"model_type": "mistral", "vocab_size": VOCABULARY, "num_hidden_layers": layers, **heads, **sizes}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL, which could read images too."""
    text = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": 2 * WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 2 * WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def qwen3(kind: type[Any], layers: int) -> Any:
    """A Qwen3 of class `kind`."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    return kind(
        Qwen3Config(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=layers, **heads)
    )


def qwen_tokenizer(chat_template: str, text: str = "") -> Any:
    """Qwen's tokenizer: bytes, joined to the words of `text` and a few others."""
    marks = ["<|im_start|>", "<|im_end|>"]
    trained = Qwen2Tokenizer().train_new_from_iterator(
        [*WORDS, text] * 2, VOCABULARY, new_special_tokens=marks, show_progress=False
    )
    trained.chat_template = chat_template
    return trained
