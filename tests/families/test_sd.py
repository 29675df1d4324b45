"""Stable Diffusion 1.x and 2.x: every part equals what the stock pipeline does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.errors import UserError
from dreambooth.families import sd
from dreambooth.models import SD_CROSS_ATTENTION, Source, native_resolution, resolve
from tests.families.ldm import to_ldm

PROMPTS = ["a photo of a dog", "", "a sks dog, in the snow"]
CONFIGS = Path(sd.__file__).parent / "configs"


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    return sd.load(resolve(str(tiny_sd)), torch.float32)


@pytest.fixture(scope="module")
def stock(tiny_sd):
    return StableDiffusionPipeline.from_pretrained(tiny_sd)


def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a dog", num_inference_steps=2, generator=generator, output_type="np").images


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


# Loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_loaded_frozen_and_cast(tiny_sd, stock, dtype):
    loaded = sd.load(resolve(str(tiny_sd)), dtype)
    assert modules(loaded).keys() == {"unet", "vae", "text_encoder"}
    for name, module in modules(loaded).items():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        expected = modules(stock)[name].state_dict()
        assert all(torch.equal(tensor, expected[key].to(dtype)) for key, tensor in module.state_dict().items())


# Encoding and prediction


def test_prompts_are_encoded_as_the_stock_pipeline_does(pipe, stock):
    rows = sd.encode_prompts(pipe, PROMPTS)
    expected, _ = stock.encode_prompt(PROMPTS, "cpu", 1, False)
    assert [row.keys() for row in rows] == [{"prompt_embeds_LD"}] * 3
    assert torch.equal(sd.collate(rows)["prompt_embeds_BLD"], expected)
    assert expected.shape == (3, 77, 8)


def test_prompts_are_encoded_as_in_a_batch_of_one(pipe, stock):
    for row, prompt in zip(sd.encode_prompts(pipe, PROMPTS), PROMPTS, strict=True):
        expected, _ = stock.encode_prompt(prompt, "cpu", 1, False)
        torch.testing.assert_close(row["prompt_embeds_LD"], expected[0])


def test_prompt_encoding_is_differentiable(tiny_sd):
    trained = sd.load(resolve(str(tiny_sd)), torch.float32)
    trained.text_encoder.requires_grad_(True)
    sd.encode_prompts(trained, ["a dog"])[0]["prompt_embeds_LD"].sum().backward()
    assert trained.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_prompt_that_does_not_fit_is_refused(pipe):
    prompt = "dog " * 75 + "on the Moon"
    sd.encode_prompts(pipe, ["dog " * 75])
    with pytest.raises(UserError) as refusal:
        sd.encode_prompts(pipe, ["a dog", prompt])
    assert str(refusal.value) == (
        f"the prompt '{prompt[:57]}...' has 80 tokens, 77 fit: shorten it, 'on the moon' would be lost"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_encoded_to_the_scaled_posterior(tiny_sd, dtype):
    loaded = sd.load(resolve(str(tiny_sd)), dtype)
    pixels = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = sd.encode_images(loaded, pixels)
    assert loaded.vae.dtype == torch.float32, "left so: half precision costs it accuracy"
    with torch.no_grad():
        posterior = loaded.vae.float().encode(pixels).latent_dist
    noise = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    latents = encoded["mean_BCHW"] + encoded["std_BCHW"] * noise
    expected = posterior.sample(torch.Generator().manual_seed(1)) * loaded.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    assert encoded["std_BCHW"].min() > 0


def test_prediction_is_the_stock_unet_call(pipe, stock):
    """What the pipeline hands its U-Net in its first step, and what comes back, is what `predict` gives."""
    calls = []
    hook = stock.unet.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    draw(stock)
    hook.remove()
    args, kwargs, (expected,) = calls[0]
    noisy, t = args
    cond = sd.collate(sd.encode_prompts(pipe, ["", "a dog"]))
    torch.testing.assert_close(cond["prompt_embeds_BLD"], kwargs["encoder_hidden_states"])
    with torch.no_grad():
        torch.testing.assert_close(sd.predict(pipe.unet, noisy, t.expand(2), cond), expected)


def test_the_process_is_that_of_the_scheduler(pipe, tiny_sd_v):
    process = sd.process(pipe)
    assert process.prediction == "epsilon"
    assert torch.equal(process.alphas_cumprod_T, pipe.scheduler.alphas_cumprod)
    assert sd.process(sd.load(resolve(str(tiny_sd_v)), torch.float32)).prediction == "v"


@pytest.mark.parametrize("fixture", ["tiny_sd", "tiny_sd_v"])
def test_the_class_sampler_is_stochastic_and_on_the_same_schedule(fixture, request):
    loaded = sd.load(resolve(str(request.getfixturevalue(fixture))), torch.float32)
    sampler = sd.class_sampler(loaded)
    assert sampler.config.prediction_type == loaded.scheduler.config.prediction_type
    torch.testing.assert_close(sampler.alphas_cumprod, loaded.scheduler.alphas_cumprod)
    first, again, other = (one_step(sampler, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def one_step(sampler, seed):
    """The first sampling step from the same latents and prediction, with the noise of `seed`."""
    sampler.set_timesteps(10)
    t, ones = sampler.timesteps[0], torch.ones(1, 4, 8, 8)
    latents = sampler.scale_model_input(ones, t)
    return sampler.step(ones, t, latents, generator=torch.Generator().manual_seed(seed)).prev_sample


# Single files


def configs_only(folder, target):
    """Copy a model folder without its weights and tokenizer, as the shipped configurations are."""
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer"))


@pytest.fixture
def single_files_of_its_width(tiny_sd, tmp_path, monkeypatch):
    """Let single files be read that have the debug model's cross-attention width."""
    monkeypatch.setattr(sd, "CONFIGS", {(8, "epsilon"): configs_only(tiny_sd, tmp_path / "configs")})
    monkeypatch.setattr(sd, "DEFAULT_PREDICTIONS", {8: "epsilon"})
    monkeypatch.setattr(sd, "PAD_TOKENS", {8: "<|endoftext|>"})


@pytest.mark.parametrize(
    ("prefix", "part"), [("first_stage_model.", "autoencoder"), ("cond_stage_model.", "text encoder")]
)
def test_a_single_file_with_a_part_missing_is_refused(stock, tmp_path, prefix, part):
    file = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in to_ldm(stock).items() if not name.startswith(prefix)}, file)
    with pytest.raises(UserError) as refusal:
        resolve(str(file))
    assert str(refusal.value) == f"{file} has no {part}: give a file with all parts of the model"


@pytest.mark.usefixtures("single_files_of_its_width")
@pytest.mark.parametrize("openclip", [False, True])
def test_a_single_file_is_the_same_model_as_the_folder(stock, pipe, tmp_path, openclip):
    file = tmp_path / "model.safetensors"
    save_file(to_ldm(stock, openclip), file)
    source = resolve(str(file))
    assert source.family == "sd"
    loaded = sd.load(source, torch.float32)
    for name, module in modules(pipe).items():
        state = modules(loaded)[name].state_dict()
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
        assert not any(parameter.requires_grad for parameter in modules(loaded)[name].parameters())
    assert (draw(loaded) == draw(pipe)).all()
    assert sd.load(source, torch.bfloat16).text_encoder.dtype == torch.bfloat16


def header_of(tmp_path, width, metadata=None):
    save_file({SD_CROSS_ATTENTION: torch.zeros(1, width)}, tmp_path / "model.safetensors", metadata)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("width", "metadata", "name", "pad", "side"),
    [
        (768, None, "sd1", "<|endoftext|>", 512),
        (1024, None, "sd2-v", "!", 768),
        (1024, {"modelspec.prediction_type": "epsilon"}, "sd2", "!", 512),
        (1024, {"modelspec.prediction_type": "v"}, "sd2-v", "!", 768),
    ],
)
def test_the_configuration_that_fits_a_file(tmp_path, caplog, width, metadata, name, pad, side):
    file = header_of(tmp_path, width, metadata)
    assert native_resolution(Source("x", "sd", file, "x", None)) == side
    assert sd._config_of_file(file) == (CONFIGS / name, pad)
    guessed = width == 1024 and metadata is None
    assert [record.message.startswith("model.safetensors does not say") for record in caplog.records] == [
        True
    ] * guessed


@pytest.mark.parametrize(
    ("width", "metadata", "message"),
    [
        (640, None, "has cross-attention of width 640: SD 1.x has 768 and SD 2.x 1024"),
        (
            768,
            {"modelspec.prediction_type": "v"},
            "predicts 'v', unusual for its kind: convert it to a diffusers folder first",
        ),
    ],
)
def test_a_file_without_a_configuration_is_refused(tmp_path, width, metadata, message):
    file = header_of(tmp_path, width, metadata)
    with pytest.raises(UserError) as refusal:
        sd.load(Source(str(file), "sd", file, "", None), torch.float32)
    assert str(refusal.value) == f"{file} {message}"


# The shipped configurations, against the published sizes of the models


@pytest.mark.parametrize(
    ("name", "unet", "text", "scheduler", "process"),
    [
        ("sd1", 859_520_964, 123_060_480, PNDMScheduler, "epsilon"),
        ("sd2", 865_910_724, 340_387_840, PNDMScheduler, "epsilon"),
        ("sd2-v", 865_910_724, 340_387_840, DDIMScheduler, "v_prediction"),
    ],
)
def test_a_shipped_configuration_is_the_published_model(name, unet, text, scheduler, process):
    folder = CONFIGS / name
    with init_empty_weights():
        parts = [
            UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")),
            AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
            CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")),
        ]
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert sizes == [unet, 83_653_863, text]
    assert parts[1].config.scaling_factor == 0.18215
    loaded = scheduler.from_pretrained(folder, subfolder="scheduler")
    assert loaded.config.prediction_type == process
    assert (loaded.config.beta_start, loaded.config.beta_end) == (0.00085, 0.012)
    assert StableDiffusionPipeline.load_config(folder)["scheduler"][1] == scheduler.__name__


def test_the_shipped_tokenizer_pads_as_each_generation_does():
    for pad_token, padding in (("<|endoftext|>", 49407), ("!", 0)):
        tokenizer = CLIPTokenizer.from_pretrained(sd.TOKENIZER, pad_token=pad_token)
        ids = tokenizer("a dog", padding="max_length").input_ids
        assert ids == [49406, 320, 1929, 49407] + [padding] * 73
