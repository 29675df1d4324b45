"""The model card of an export: a README with the front matter that the hub reads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dreambooth import __version__, buckets
from dreambooth.export.metadata import trigger
from dreambooth.files import write_text
from dreambooth.methods.lora import T_LORA
from dreambooth.methods.textual_inversion import EMBEDS
from dreambooth.models import Source
from dreambooth.pages import Score
from dreambooth.recipe import Recipe
from dreambooth.run import Run

LICENCES = {
    "Apache-2.0": "apache-2.0",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
    "CreativeML Open RAIL++-M": "openrail++",
}
"""Licence of a base model -> the hub's identifier; for others the hub wants "other" and a name."""

WIDGETS = 6
SCORES = ("dino", "clip_i", "clip_t", "div", "pres", "copying")

WHERE = "PATH_OF_THIS_FOLDER"
"""What a reader puts in the folder's place."""


def write(run: Run, source: Source, format: str, folder: Path) -> None:
    """Write `README.md` and the pictures that it shows.

    Args:
        run: The run.
        source: Its base model.
        format: What the folder holds, by its name in `FORMATS`.
        folder: The folder.
    """
    shown = _copy_pictures(run, folder)
    front = _front_matter(run, source, format, shown)
    parts = [f"---\n{front.to_yaml()}\n---", f"# {_title(run)}", _story(run), _use(run, source, format, folder)]
    parts += [_facts(run), _scores(run)]
    write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _title(run: Run) -> str:
    return f"DreamBooth of {trigger(run)}"


def _front_matter(run: Run, source: Source, format: str, shown: list[tuple[str, str]]) -> ModelCardData:
    recipe = run.recipe
    adapter = [("lora" if recipe.is_lora else "peft")] if recipe.has_adapter else []
    adapter += ["textual_inversion"] if recipe.learns_token else []
    is_adapter = format in ("diffusers", "kohya", "comfyui") and bool(adapter)
    tags = ["text-to-image", "diffusers", "dreambooth", *(adapter if is_adapter else [])]
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)@\w+", source.identity)
    kind = "adapter" if is_adapter else "finetune"
    # the hub knows its own models alone, and where others lie is nobody's business
    relation = {"base_model": hub_id[1], "base_model_relation": kind} if hub_id else {}
    return ModelCardData(
        **relation,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        instance_prompt=trigger(run),
        tags=tags,
        widget=[{"text": text, "output": {"url": file}} for text, file in shown] or None,
        **_licence(source),
    )


def _licence(source: Source) -> dict[str, str]:
    """Return the licence of the base model, which what is made from it inherits; none where it is not known."""
    if source.card is None:
        return {}
    known = LICENCES.get(source.card.licence)
    return {"license": known} if known else {"license": "other", "license_name": source.card.licence}


def _copy_pictures(run: Run, folder: Path) -> list[tuple[str, str]]:
    """Copy pictures of the subject and of scenes, and return the prompt and the file of each."""
    manifest = run.samples / "manifest.json"
    if not manifest.is_file():
        return []
    entries: list[dict[str, Any]] = json.loads(manifest.read_text(encoding="utf-8"))["images"]
    wanted = [entry for entry in entries if entry["role"] == "after" and entry["kind"] in ("scene", "subject")]
    shown = []
    for entry in sorted(wanted, key=lambda entry: str(entry["kind"]))[:WIDGETS]:
        (folder / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(run.samples / entry["file"], folder / "pictures" / entry["file"])
        shown.append((entry["text"], f"pictures/{entry['file']}"))
    return shown


def _story(run: Run) -> str:
    recipe, info = run.recipe, run.info
    parts = ["a learned token"] if recipe.learns_token else []
    parts += [f"an adapter ({recipe.adapter_name})"] if recipe.has_adapter else []
    what = " and ".join(parts) or "a fully fine-tuned model"
    what = what[0].upper() + what[1:]
    count = len(recipe.subjects)
    drawn, them = ("one subject", "it") if count == 1 else (f"{count} subjects", "them")
    return (
        f"{what} that draws {drawn}, trained on {len(info['photos'])} photos of {them} from {info['model']['name']}. "
        f"Write `{trigger(run)}` in the prompt."
    )


def _use(run: Run, source: Source, format: str, folder: Path) -> str:
    is_file = format in ("kohya", "comfyui")
    file = next((path.name for path in folder.glob("*.safetensors")), "")
    loads = _loads(run, source, format, folder)
    imports = ["from diffusers import " + ("Stable" if format == "single-file" else "") + "DiffusionPipeline"]
    imports += ["from peft import PeftModel"] if any("PeftModel" in line for line in loads) else []
    imports += ["from dreambooth.toybox import BASE"] if any("BASE)" in line for line in loads) else []
    code = "\n".join([*imports, "", *loads, f'image = pipe("{trigger(run)}").images[0]'])
    text = f"## Use\n\n```python\n{code}\n```"
    if format == "diffusers" and run.recipe.min_rank:
        text += f"\n\n{T_LORA}"
    if is_file:
        text += (
            f"\n\nIn ComfyUI, put `{file}` into `models/loras` and load it with the node *Load LoRA*, at strength 1."
        )
    if format == "single-file":
        text += f"\n\nIn ComfyUI, put `{file}` into `models/checkpoints` and load it with the node *Load Checkpoint*."
    return text


def _loads(run: Run, source: Source, format: str, folder: Path) -> list[str]:
    """Return the lines that load what lies in the folder."""
    on_hub = "@" in source.identity
    base = f'"{source.identity.partition("@")[0] if on_hub else source.name}"'
    if source.card and not on_hub:
        base = "str(BASE)"  # it comes with the package
    if format == "single-file":
        (file,) = folder.glob("*.safetensors")
        config = "" if on_hub else f", config={base}"
        return [f'pipe = StableDiffusionPipeline.from_single_file("{WHERE}/{file.name}"{config})']
    if format == "merged" or run.recipe.method == "full":
        return [f'pipe = DiffusionPipeline.from_pretrained("{WHERE}")']
    parts = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    return [
        f"pipe = DiffusionPipeline.from_pretrained({base})",
        *(f'PeftModel.from_pretrained(pipe.{part}, "{WHERE}/{part}")' for part in parts),
        *(line for file in sorted(folder.glob("*.safetensors")) for line in _load_file(file, source.family != "sd")),
    ]


def _load_file(file: Path, pools: bool) -> list[str]:
    """Return the lines that load a LoRA, or the embeddings of the encoder that their file's name tells.

    Args:
        file: The file.
        pools: Whether the model is given a sum of the text too, which `textual_inversion` has CLIP make at its end.
    """
    if not file.name.startswith(EMBEDS):
        return [f'pipe.load_lora_weights("{WHERE}", weight_name="{file.name}")']
    number = file.stem.partition("-")[0].removeprefix(EMBEDS)
    encoder, tokenizer = f"pipe.text_encoder{number}", f"pipe.tokenizer{number}"
    given = f", text_encoder={encoder}, tokenizer={tokenizer}" if number else ""
    end = [f"for part in {encoder}.modules():", f"    part.eos_token_id = {tokenizer}.eos_token_id"]
    return [f'pipe.load_textual_inversion("{WHERE}", weight_name="{file.name}"{given})', *(end if pools else [])]


def _facts(run: Run) -> str:
    recipe, info = run.recipe, run.info
    rows = {
        "base model": f"{info['model']['name']} ({info['model']['identity']})",
        "method": recipe.method if recipe.rank is None else f"{recipe.method}, rank {recipe.rank}",
        "photos": f"{len(info['photos'])}{_scales(recipe)}",
        "steps": f"{run.shipped_steps}, batch size {recipe.batch_size}",
        "learning rate": recipe.learning_rate,
        "text encoder trained": "yes" if recipe.train_text_encoder else "no",
        "prior preservation": _prior(recipe) if recipe.prior_weight else "none",
        "resolution": f"{', '.join(map(str, buckets.resolutions(recipe)))} px",
        "seed": recipe.seed,
        "run": info["identity"],
        "trained with": f"dreambooth {__version__}",
    }
    if "guidance" in info.get("selection", {}):
        rows["guidance of its scores"] = f"{info['selection']['guidance']:g}"
    if recipe.consistency is not None:
        how = f"consistency guidance {recipe.consistency:g}, which `dreambooth generate` has"
        rows["its pictures and scores are with"] = how
    return "## Training\n\n" + _table(("", ""), [(name, str(value)) for name, value in rows.items()])


def _scales(recipe: Recipe) -> str:
    return f", each at {recipe.scales} other scales too" if recipe.scales else ""


def _prior(recipe: Recipe) -> str:
    """Say what kept the class."""
    dropped = f", {recipe.prior_dropout:.0%} of it without a prompt" if recipe.prior_dropout else ""
    others = f", {recipe.prior_others:.0%} of it the photos as other things" if recipe.prior_others else ""
    return f"{recipe.prior_loss}, weight {recipe.prior_weight:g}{dropped}{others}"


def _scores(run: Run) -> str:
    """Return a table of the run's scores; nothing where it was not evaluated."""
    path = run.path / "scores.json"
    if not path.is_file():
        return ""
    there = json.loads(path.read_text(encoding="utf-8"))
    rows = [(name, str(Score.read(there[name]))) for name in SCORES if name in there]
    return "## Scores\n\nWith 95 % intervals.\n\n" + _table(("score", "value"), rows) if rows else ""


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {first} | {second} |" for first, second in lines)
