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

LOAD = {
    "lora": 'pipe = DiffusionPipeline.from_pretrained("{base}")\npipe.load_lora_weights("{where}"{file})',
    "textual-inversion": 'pipe = DiffusionPipeline.from_pretrained("{base}")\npipe.load_textual_inversion("{where}")',
    "pipeline": 'pipe = DiffusionPipeline.from_pretrained("{where}")',
    "single-file": 'pipe = StableDiffusionPipeline.from_single_file("{where}/{name}"{config})',
}
"""Kind of export -> the lines that load it."""


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
    method = run.recipe.method
    adapter = {"lora": ["lora"], "textual-inversion": ["textual_inversion"]}.get(method, [])
    is_adapter = format in ("diffusers", "kohya", "comfyui") and bool(adapter)
    tags = ["text-to-image", "diffusers", "dreambooth", *(adapter if is_adapter else [])]
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)@\w+", source.identity)
    relation = {"base_model_relation": "adapter" if is_adapter else "finetune"} if hub_id else {}
    return ModelCardData(
        base_model=hub_id[1] if hub_id else source.name,
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
    what = {"lora": "A LoRA", "full": "A fully fine-tuned model"}.get(recipe.method, "A learned token")
    count = len(recipe.subjects)
    drawn, them = ("one subject", "it") if count == 1 else (f"{count} subjects", "them")
    return (
        f"{what} that draws {drawn}, trained on {len(info['photos'])} photos of {them} from {info['model']['name']}. "
        f"Write `{trigger(run)}` in the prompt."
    )


def _use(run: Run, source: Source, format: str, folder: Path) -> str:
    method = run.recipe.method
    is_file = format in ("kohya", "comfyui")
    kind = format if format == "single-file" else method if format == "diffusers" or is_file else "pipeline"
    file = next((path.name for path in folder.glob("*.safetensors")), "")
    where, base = "PATH_OF_THIS_FOLDER", source.identity.partition("@")[0] if "@" in source.identity else source.name
    values = {
        "base": base,
        "where": where,
        "name": file,
        "file": f', weight_name="{file}"' if is_file else "",
        "config": "" if "@" in source.identity else f', config="{base}"',
    }
    load = LOAD["pipeline" if kind == "full" else kind].format(**values)
    imported = "StableDiffusionPipeline" if kind == "single-file" else "DiffusionPipeline"
    code = f'from diffusers import {imported}\n\n{load}\nimage = pipe("{trigger(run)}").images[0]'
    text = f"## Use\n\n```python\n{code}\n```"
    if is_file:
        text += (
            f"\n\nIn ComfyUI, put `{file}` into `models/loras` and load it with the node *Load LoRA*, at strength 1."
        )
    if kind == "single-file":
        text += f"\n\nIn ComfyUI, put `{file}` into `models/checkpoints` and load it with the node *Load Checkpoint*."
    return text


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
