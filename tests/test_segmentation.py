"""The segmenter's masks are transformers' own, and the doctor believes them before what stands out."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from dreambooth import saliency, segmentation
from dreambooth.errors import UserError
from dreambooth.photo_doctor import Segment, examine
from tests.calls import call
from tests.debug_models import TOKENIZER
from tests.pictures import picture

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 20}
DECODER = {"extract_layers": [0, 1], "reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
SMALL = (0.7, 0.7, 0.8, 0.85)


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIPSeg of random weights that takes pictures of 48 pixels. Read it, never write to it."""
    folder = tmp_path_factory.mktemp("clipseg")
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    config = CLIPSegConfig(text_config={**SIZES, **TEXT}, vision_config=vision, projection_dim=12, **DECODER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPSegForImageSegmentation(config).save_pretrained(folder)
    prepare = ViTImageProcessor(size={"height": 48, "width": 48})
    CLIPSegProcessor(prepare, CLIPTokenizer.from_pretrained(TOKENIZER)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(60, 40), (33, 90)])
@torch.no_grad()
def test_the_mask_is_what_transformers_gives(clipseg: Path, size: tuple[int, int]) -> None:
    image = picture(0, size)
    mask = segmentation.load(str(clipseg))(image, "elephant")
    inputs = CLIPSegProcessor.from_pretrained(clipseg)(text=["an elephant"], images=[image], return_tensors="pt")
    logits = CLIPSegForImageSegmentation.from_pretrained(clipseg).eval()(**inputs).logits
    resized = F.interpolate(logits[None], size[::-1], mode="bilinear")[0, 0]
    assert (mask.dtype, mask.shape) == (np.dtype(bool), size[::-1])
    assert np.array_equal(mask, (resized.sigmoid() > 0.5).numpy())
    assert 0.02 < mask.mean() < 0.98, "a mask of nothing or of everything would show nothing"


def faint(folder: Path) -> Path:
    """A photo of a small thing that hardly differs from what is around it."""
    folder.mkdir()
    blots = np.random.default_rng(0).integers(60, 200, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(blots).resize((320, 240), Image.Resampling.BICUBIC)
    x, y = round(SMALL[0] * 320), round(SMALL[1] * 240)
    colour = tuple(level + 6 for level in image.getpixel((x, y)))
    ImageDraw.Draw(image).rectangle((x, y, x + 31, y + 35), fill=colour)
    image.save(folder / "0.png")
    return folder


def marking(box: tuple[float, float, float, float]) -> Segment:
    """A segmenter that finds what is in a box given in shares of the picture."""

    def segment(image: Image.Image) -> np.ndarray:
        mask = np.zeros((image.height, image.width), dtype=bool)
        left, top, right, bottom = (
            round(share * side) for share, side in zip(box, (*image.size, *image.size), strict=True)
        )
        mask[top:bottom, left:right] = True
        return mask

    return segment


def kinds(folder: Path, segment: Segment | None = None) -> set[str]:
    (finding,) = examine(folder, 64, segment).findings
    return {problem.kind for problem in finding.problems}


def test_what_the_saliency_misses_is_judged_by_the_segmenters_mask(tmp_path: Path) -> None:
    folder = faint(tmp_path / "photos")
    assert saliency.find(Image.open(folder / "0.png")).box != pytest.approx(SMALL, abs=0.1)
    assert not kinds(folder) & {"tiny", "cut"}
    assert "tiny" in kinds(folder, marking(SMALL))
    assert "cut" in kinds(folder, marking((0.0, 0.2, 0.4, 0.8)))
    (scene,) = examine(folder, 64, marking(SMALL)).scenes
    assert scene.subject.box == pytest.approx(SMALL, abs=0.03)


def test_a_segmenter_sees_a_subject_that_the_photos_edge_cuts(tmp_path: Path) -> None:
    folder = faint(tmp_path / "photos")
    (finding,) = examine(folder, 64, marking((0.4, 0.5, 0.6, 1.0))).findings
    assert "cut off at the bottom" in " ".join(problem.message for problem in finding.problems)


def test_a_mask_beside_the_photo_is_believed_before_the_segmenter(tmp_path: Path) -> None:
    folder = faint(tmp_path / "photos")
    mask = Image.new("L", (320, 240))
    mask.paste(255, (96, 60, 224, 180))
    mask.save(folder / "0.mask.png")
    assert "tiny" not in kinds(folder, marking(SMALL))


def test_of_a_photo_in_which_the_segmenter_finds_nothing_nothing_is_concluded(tmp_path: Path) -> None:
    folder = faint(tmp_path / "photos")
    assert not kinds(folder, marking((0, 0, 0, 0))) & {"tiny", "cut"}
    (scene,) = examine(folder, 64, marking((0, 0, 0, 0))).scenes
    assert (scene.subject.contrast, scene.subject.box) == (0, (0, 0, 1, 1))


def test_the_command_asks_the_segmenter_for_the_class(clipseg: Path, tmp_path: Path) -> None:
    folder = faint(tmp_path / "photos")
    given = ["check", folder, "--resolution", 64, "--segmenter", clipseg, "--class", "dog"]
    told = call(*given, "--json", "--sheet", tmp_path / "sheet.png")
    assert (told.status, told.err) == (0, "")
    (entry,) = json.loads(told.out)["photos"]
    mask = segmentation.load(str(clipseg))(Image.open(folder / "0.png"), "dog")
    expected = saliency.from_mask(Image.fromarray(mask))
    assert entry["subject"] == {"box": [round(edge, 3) for edge in expected.box], "contrast": 1.0, "given": True}
    assert Image.open(tmp_path / "sheet.png").width >= 320


def test_of_a_hub_model_that_is_no_clipseg_no_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot_download(repository: str, *, allow_patterns: list[str], **options: object) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"owner/model is a vit model, no CLIPSeg"):
        segmentation.load("owner/model")
    assert not any("safetensors" in pattern for pattern in asked)
    (tmp_path / "config.json").write_text('{"model_type": "clipseg"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"only partly in the cache: .*if the hub has no \*.safetensors of it either"):
        segmentation.load("owner/model")


def without(folder: Path, home: Path, *names: str) -> str:
    """A copy of a folder without some of its files."""
    home.mkdir()
    for file in folder.iterdir():
        if file.name not in names:
            (home / file.name).write_bytes(file.read_bytes())
    return str(home)


def test_what_is_no_whole_clipseg_is_refused_in_one_line(clipseg: Path, tmp_path: Path) -> None:
    ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    (tmp_path / "photos").mkdir()
    pickled = Path(without(clipseg, tmp_path / "pickled", "model.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(b"")
    refused = {
        "nobody/nothing": "nobody/nothing is not in the cache and HF_HUB_OFFLINE is set: run `hf download nobody/not",
        str(tmp_path / "nowhere"): f"there is no model {tmp_path / 'nowhere'} here or on the hub: check the name",
        str(tmp_path / "photos"): f"there is no model in {tmp_path / 'photos'}: it has no config.json",
        str(tmp_path / "vit"): f"{tmp_path / 'vit'} is a vit model, no CLIPSeg: give one, such as CIDAS/clipseg-",
        str(pickled): "only as a pickle: a pickle can run any code when it is opened",
        without(clipseg, tmp_path / "wordless", "tokenizer.json"): "wordless has no tokenizer.json or vocab.json",
        without(clipseg, tmp_path / "blind", "processor_config.json"): "blind has no preprocessor_config.json or ",
    }
    for model, said in refused.items():
        with pytest.raises(UserError) as error:
            segmentation.load(model)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
