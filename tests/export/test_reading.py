"""LoRAs of other trainers, under every name that their files have: all of it is in force, or the file is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.export import names, reading
from tests import debug_models
from tests.export import comfyui
from tests.export.runs import assert_same, finished, load_base, picture

OLD = ".processor.to_"
STYLES: dict[str, tuple[str, Callable[[str], bool], str, str]] = {
    "kohya": ("sd", lambda name: name.startswith(("lora_unet_down", "lora_unet_up", "lora_te_")), *comfyui.ENDINGS[0]),
    "kohya, both encoders": ("sdxl", lambda name: name.startswith(("lora_te1_", "lora_te2_")), *comfyui.ENDINGS[0]),
    "original names": ("sdxl", lambda name: name.startswith(("lora_unet_in", "lora_unet_out_")), *comfyui.ENDINGS[0]),
    "original names, dotted": ("sd", lambda name: name.startswith("diffusion_model."), *comfyui.ENDINGS[2]),
    "old diffusers": ("sd", lambda name: name.startswith("unet.") and OLD in name, *comfyui.ENDINGS[1]),
    "oldest diffusers": ("sd", lambda name: name.startswith("mid_block") and OLD in name, *comfyui.ENDINGS[1]),
    "text of old diffusers": ("sd", lambda name: name.startswith("text_encoder."), *comfyui.ENDINGS[4]),
}
"""Style -> model, which of ComfyUI's names are of that style, and how the names of a layer's tensors end."""


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DiffusionPipeline]:
    home = tmp_path_factory.mktemp("models")
    return {name: load_base(str(debug_models.build(name, home / name))) for name in ("sd", "sdxl", "flux", "deepfloyd")}


def weight_of(pipe: DiffusionPipeline, component: str, name: str) -> Tensor | None:
    module = getattr(pipe, component)
    name = name if hasattr(module, "text_model") else name.removeprefix("text_model.")
    return dict(module.named_parameters()).get(f"{name}.weight")


def random_lora(pipe: DiffusionPipeline, style: str) -> dict[str, Tensor]:
    """A LoRA under one style of names, of ranks 1 to 3 and alphas that are not the ranks."""
    _, is_style, up, down = STYLES[style]
    torch.manual_seed(3)
    tensors = {}
    for index, (name, (component, layer)) in enumerate(comfyui.key_map(pipe).items()):
        weight = weight_of(pipe, component, layer)
        if weight is None or not is_style(name):
            continue
        rank = 1 + index % 3
        tensors[f"{name}{down}"] = 0.6 * torch.randn(rank, *weight.shape[1:])
        tensors[f"{name}{up}"] = 0.6 * torch.randn(len(weight), rank, *[1] * (weight.dim() - 2))
        tensors[f"{name}.alpha"] = torch.tensor(0.5 + index % 2)
    assert tensors
    return tensors


@pytest.mark.parametrize("style", STYLES)
def test_a_file_of_any_style_does_what_comfyui_does_with_it(
    style: str, pipes: dict[str, DiffusionPipeline], tmp_path: Path
) -> None:
    base = pipes[STYLES[style][0]]
    tensors = random_lora(base, style)
    save_file(tensors, tmp_path / "theirs.safetensors")
    patched, ours = copy.deepcopy(base), copy.deepcopy(base)
    assert comfyui.load(patched, tensors) == []
    reading.add(ours, tmp_path / "theirs.safetensors", "theirs")
    expected = picture(patched)
    assert abs(picture(base) - expected).max() > 0.01
    assert_same(picture(ours), expected)


def test_two_files_are_added_beside_each_other(pipes: dict[str, DiffusionPipeline], tmp_path: Path) -> None:
    patched, ours = copy.deepcopy(pipes["sd"]), copy.deepcopy(pipes["sd"])
    for name in ("kohya", "old diffusers"):
        tensors = random_lora(pipes["sd"], name)
        save_file(tensors, tmp_path / "theirs.safetensors")
        reading.add(ours, tmp_path / "theirs.safetensors", name.replace(" ", "-"))
        assert comfyui.load(patched, tensors) == []
    ours.set_adapters(["kohya", "old-diffusers"], [1.0, 1.0])
    assert_same(picture(ours), picture(patched))


def test_a_linear_layer_may_be_kept_as_a_convolution(pipes: dict[str, DiffusionPipeline], tmp_path: Path) -> None:
    tensors = {key: value for key, value in random_lora(pipes["sd"], "kohya").items() if "to_q" in key}
    spread = {key: value[..., None, None] if value.dim() == 2 else value for key, value in tensors.items()}
    for name, content in (("matrices", tensors), ("convolutions", spread)):
        save_file(content, tmp_path / f"{name}.safetensors")
    read = [reading.read(tmp_path / f"{name}.safetensors", pipes["sd"]) for name in ("matrices", "convolutions")]
    assert read[0].keys() == read[1].keys()
    assert all(torch.equal(read[0][key], read[1][key]) for key in read[0])


def test_our_own_adapters_are_read_as_they_are(tmp_path: Path, pipes: dict[str, DiffusionPipeline]) -> None:
    for kind in ("sdxl", "flux"):
        model = debug_models.build(kind, tmp_path / kind)
        run = finished(tmp_path / f"run-{kind}", model, train_text_encoder=kind == "sdxl")
        file = run.adapter / "pytorch_lora_weights.safetensors"
        ours = load_file(file)
        read = reading.read(file, pipes[kind])
        assert ours.keys() == read.keys()
        assert all(torch.equal(ours[key], read[key]) for key in ours)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "flux", "deepfloyd"])
def test_no_name_stands_for_two_layers(kind: str, pipes: dict[str, DiffusionPipeline]) -> None:
    owners: dict[str, set[str]] = {}
    for path in names.layers(pipes[kind]):
        for name in names.known(path, pipes[kind]):
            owners.setdefault(name, set()).add(path)
    assert [name for name, paths in owners.items() if len(paths) > 1] == []


def spoilt(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    stem = key.removesuffix(".lora_up.weight")
    value = tensors[key]
    if how == "renamed":
        return {**{k: v for k, v in tensors.items() if k != key}, key.replace("lora_unet_", "lora_unet_x"): value}
    if how == "half":
        return {k: v for k, v in tensors.items() if k != key}
    if how == "shape":
        return {**tensors, key: value[:-1]}
    if how == "twice":
        return {**tensors, "diffusion_model.input_blocks.1.1.proj_in.lora_up.weight": value}
    if how == "dora":
        return {**tensors, f"{stem}.dora_scale": torch.ones(len(value), 1)}
    return {f"{stem}.lokr_w1": value, f"{stem}.lokr_w2": value}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("renamed", r"\d+ of \d+ tensors of .*theirs.safetensors fit a StableDiffusionPipeline, not .*: give the base"),
        ("half", r"not lora_unet_\S+\.(lora_down\.weight|alpha)"),
        ("shape", "give the base model that it was made for"),
        ("twice", r"not .*diffusion_model.input_blocks.1.1.proj_in.lora_up.weight"),
        ("dora", "it is a DoRA file, and only LoRA files are read"),
        ("lokr", "0 of 2 tensors .* it is a LoKr file"),
    ],
)
def test_a_file_of_which_a_part_would_be_inert_is_refused(
    how: str, said: str, pipes: dict[str, DiffusionPipeline], tmp_path: Path
) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file({k: v.contiguous().clone() for k, v in spoilt(random_lora(pipes["sd"], "kohya"), how).items()}, file)
    pipe = copy.deepcopy(pipes["sd"])
    with pytest.raises(UserError, match=said):
        reading.add(pipe, file, "theirs")
    assert not pipe.get_list_adapters()


def test_a_lora_of_another_kind_of_model_is_refused(pipes: dict[str, DiffusionPipeline], tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(random_lora(pipes["sdxl"], "kohya, both encoders"), file)
    with pytest.raises(UserError, match="fit a StableDiffusionPipeline, not lora_te2_text_model"):
        reading.read(file, pipes["sd"])


def of_flux(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """A LoRA of rank 2 on every attention of a FLUX, with diffusers' names and an alpha of 1."""
    torch.manual_seed(4)
    tensors = {}
    for path, layer in names.layers(pipe).items():
        if path.startswith("transformer.") and ".attn.to_q" in path:
            down_RI, up_OR = torch.randn(2, layer.weight.shape[1]), torch.randn(layer.weight.shape[0], 2)
            tensors |= {f"{path}.lora_A.weight": down_RI, f"{path}.lora_B.weight": up_OR}
            tensors[f"{path}.alpha"] = torch.tensor(1.0)
    assert tensors
    return tensors


def test_the_alpha_of_a_transformers_lora_counts(pipes: dict[str, DiffusionPipeline], tmp_path: Path) -> None:
    file, tensors = tmp_path / "theirs.safetensors", of_flux(pipes["flux"])
    save_file(tensors, file)
    read = reading.read(file, pipes["flux"])
    assert set(read) == {key for key in tensors if not key.endswith("alpha")}
    assert all(torch.equal(tensor, tensors[key] / (2 if "lora_B" in key else 1)) for key, tensor in read.items())


def test_what_diffusers_would_drop_of_a_transformers_lora_is_refused(
    pipes: dict[str, DiffusionPipeline], tmp_path: Path
) -> None:
    file, tensors = tmp_path / "theirs.safetensors", of_flux(pipes["flux"])
    stem = next(iter(tensors)).removesuffix(".lora_A.weight")
    save_file({**tensors, f"{stem}.dora_scale": torch.ones(4, 1)}, file)
    with pytest.raises(UserError, match="it is a DoRA file, and only LoRA files are read"):
        reading.read(file, pipes["flux"])
    save_file(random_lora(pipes["sd"], "kohya"), file)
    with pytest.raises(UserError, match=r"^0 of \d+ tensors .* fit a FluxPipeline, not lora_.*: give the base model"):
        reading.read(file, pipes["flux"])


def test_a_file_without_a_lora_is_refused(pipes: dict[str, DiffusionPipeline], tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file({}, file)
    with pytest.raises(UserError, match="0 of 0 tensors"):
        reading.read(file, pipes["sd"])
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        reading.read(file, pipes["sd"])


def test_what_diffusers_leaves_out_is_noticed(
    pipes: dict[str, DiffusionPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.safetensors"
    tensors = random_lora(pipes["sd"], "kohya")
    save_file(tensors, file)
    pipe = copy.deepcopy(pipes["sd"])
    stock = type(pipe).load_lora_weights

    def without_text(self: DiffusionPipeline, state: dict[str, Tensor], **values: str) -> None:
        stock(self, {key: value for key, value in state.items() if key.startswith("unet.")}, **values)

    monkeypatch.setattr(type(pipe), "load_lora_weights", without_text)
    with pytest.raises(UserError, match=r"leaves \d+ of \d+ tensors out, text_encoder\."):
        reading.add(pipe, file, "theirs")
