"""Looks at a run while it trains: a few pictures are drawn and scored at intervals, for `select` to choose by."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth import methods, placing, prompts, samples, select
from dreambooth.errors import UserError
from dreambooth.evaluation import dreambench, embeddings, encoders, metrics
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.metrics import Rows
from dreambooth.files import atomic, write_json
from dreambooth.job import Job
from dreambooth.methods.pivotal import PIVOT
from dreambooth.models import CLIP_ENCODER, IDENTITY_ENCODER
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe, Subject
from dreambooth.sampling import Sampling, draw
from dreambooth.select import Choice, Look

SCENES = 8
CLASS_PICTURES = 2
EARLIEST = 1 / 7
"""Share of the steps after which a run is looked at first; each further look comes after the same factor."""
STRENGTHS = (0.6, 0.8, 1.2)
"""At which an adapter is looked at beside 1, when it has been trained."""
GUIDANCES = (0.7, 1.4)
"""Times the usual guidance, at which it is looked at too."""


@dataclass(frozen=True)
class Setting:
    """A setting of what ships, such as its strength.

    Attributes:
        name: Of the setting.
        value: That was chosen.
        looks: At all values that were tried.
        reason: One sentence.
    """

    name: str
    value: float
    looks: dict[float, Look]
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, by names of its own."""
        tried = [{"value": value, **look.as_json()} for value, look in sorted(self.looks.items())]
        return {self.name: self.value, f"{self.name}_reason": self.reason, f"{self.name}_looks": tried}


@dataclass
class Watch:
    """What looks at one run need.

    Attributes:
        folder: Keeps the looks, and the weights that may still be chosen.
        texts: The prompts with the identifier, then "a class" as often as it is drawn.
        sampling: How pictures are drawn.
        identity: Tells subjects apart.
        clip: Has pictures and texts in one space.
        photos_SRD: Rows of each subject's photos by `identity`.
        owner_N: Index of the subject that each text has, or the class of.
        words_SD: Rows of the prompts with the class noun alone by `clip`.
        frozen: The frozen model's look.
        chance: Share of copies among pictures that copy nothing.
        seconds: Time that looking took.
    """

    folder: Path
    texts: list[str]
    sampling: Sampling
    identity: Encoder
    clip: Encoder
    photos_SRD: Sequence[Rows]
    owner_N: Sequence[int]
    words_SD: Rows
    chance: float
    frozen: Look = field(init=False)
    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def choice(self) -> Choice:
        """What to ship of what has been looked at; where an interruption has lost its weights, of what is there."""
        found = select.choose(self.looks, self.frozen, self.chance)
        if self._file(found.look.step).is_file():
            return found
        there = [look for look in self.looks if self._file(look.step).is_file()]
        return select.choose(there, self.frozen, self.chance)

    @property
    def is_over(self) -> bool:
        """Whether nothing better can be expected."""
        return select.is_over(self.looks, self.frozen, self.chance)

    def resume(self, step: int) -> None:
        """Take up the looks of an interrupted run that has done `step` steps.

        Raises:
            UserError: They were drawn with other settings, so that none could be compared with those to come.
        """
        drawn, own = self.folder / "sampling.json", self.sampling.document
        there = json.loads(drawn.read_text(encoding="utf-8")) if drawn.is_file() else own
        if there != own:
            name = min(name for name in {*there, *own} if there.get(name) != own.get(name))
            what = f"{self.folder.parent} was looked at with {name} {there.get(name)}, not {own.get(name)}"
            raise UserError(f"{what}: give that again, and draw with another later")
        with suppress(FileNotFoundError):
            lines = (self.folder / "looks.jsonl").read_text(encoding="utf-8").splitlines()
            self.looks = [look for look in map(Look.of, map(json.loads, lines)) if look.step <= step]

    def look(self, images: Sequence[Image.Image], step: int, weights: Mapping[str, Tensor]) -> Look:
        """Score the pictures after `step` steps; keep the weights as long as they may be chosen."""
        made = self._score(images, step)
        self.looks = [look for look in self.looks if look.step < step] + [made]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sampling.json", self.sampling.document)
        with atomic(self._file(step)) as temporary:
            save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, temporary)
        self._forget()
        with atomic(self.folder / "looks.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(look.as_json()) + "\n" for look in self.looks), encoding="utf-8")
        return made

    def strength(self, pipe: DiffusionPipeline, chosen: Look) -> Setting:
        """Look at the shipped adapter, which `pipe` has as "subject", at several strengths; leave it at the best."""

        def seen(value: float) -> Look:
            pipe.set_adapters("subject", value)
            return self._score(self._draw(pipe, self.texts), chosen.step)

        found = self._try("strength", seen, STRENGTHS, 1.0, chosen)
        pipe.set_adapters("subject", found.value)
        return found

    def guidance(self, pipe: DiffusionPipeline, chosen: Look) -> Setting:
        """Look at what ships at several guidance scales; choose the best."""
        usual = self.sampling.guidance

        def seen(value: float) -> Look:
            return self._score(self._draw(pipe, self.texts, replace(self.sampling, guidance=value)), chosen.step)

        return self._try("guidance", seen, [round(share * usual, 2) for share in GUIDANCES], usual, chosen)

    def _try(
        self, name: str, seen: Callable[[float], Look], values: Sequence[float], usual: float, chosen: Look
    ) -> Setting:
        began = time.monotonic()
        looked = {usual: chosen, **{value: seen(value) for value in values}}
        best, reason = select.setting(looked, usual, name, self.frozen, self.chance)
        self.seconds += time.monotonic() - began
        return Setting(name, best, looked, reason)

    def put(self, weights: Mapping[str, Tensor]) -> Choice:
        """Put the chosen weights in the place of the last; the others are forgotten."""
        choice = self.choice
        chosen = load_file(self._file(choice.look.step))
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(chosen[name])
        self._forget()
        return choice

    def _forget(self) -> None:
        """Remove the weights of looks that can no longer be chosen: a later one alone can take the best one's place."""
        kept = self._file(self.choice.look.step)
        for file in self.folder.glob("*.safetensors"):
            if file != kept:
                file.unlink()

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"

    def _draw(
        self, pipe: DiffusionPipeline, texts: Sequence[str], sampling: Sampling | None = None
    ) -> list[Image.Image]:
        generators = [samples.image_generator(index) for index in range(len(texts))]
        return list(draw(pipe, texts, generators, sampling or self.sampling))

    def _score(self, images: Sequence[Image.Image], step: int) -> Look:
        likeness_ND, meaning_ND = (_embed(encoder, images) for encoder in (self.identity, self.clip))
        count = len(self.words_SD)
        likeness_N, copied_N = np.zeros(len(images)), np.zeros(len(images), bool)
        for subject, photos_RD in enumerate(self.photos_SRD):
            own_N = np.array(self.owner_N) == subject
            likeness_N[own_N] = metrics.to_references(likeness_ND[own_N], photos_RD)
            copied_N[own_N] = metrics.copying(likeness_ND[own_N], photos_RD).excess_G > 0
        return Look(
            step,
            tuple(likeness_N[:count].tolist()),
            tuple(metrics.to_text(meaning_ND[:count], self.words_SD).tolist()),
            tuple(copied_N[:count].tolist()),
            tuple(likeness_N[count:].tolist()),
        )


def is_due(recipe: Recipe, step: int) -> bool:
    """Whether to look after `step` steps: `select.LOOKS` times, the last at the end, more closely early on.

    The more steps a run has done, the less the next ones change. While a token alone is learned, before its adapter,
    there is nothing yet to choose.
    """
    assert recipe.steps is not None, "presets.fill leaves it open for no run"
    begin = PIVOT if recipe.method == "pivotal" else 0.0
    shares = begin + (1 - begin) * np.geomspace(EARLIEST, 1, select.LOOKS)
    return step in {round(share * recipe.steps) for share in shares} - {0}


@torch.no_grad()
def begin(job: Job) -> Watch:
    """Draw and score the frozen model's pictures; `job.pipe` is still frozen and whole.

    Raises:
        UserError: The encoders cannot be had.
    """
    began = time.monotonic()
    recipe, subjects = job.recipe, job.recipe.subjects
    card, device = job.plans.source.card, str(job.accelerator.device)
    identity = encoders.load(card.identity_encoder if card else IDENTITY_ENCODER, device)
    clip = encoders.load(card.clip_encoder if card else CLIP_ENCODER, device)
    owners = [index % len(subjects) for index in (*range(SCENES), *range(CLASS_PICTURES))]
    shown = [(subjects[owner], index) for index, owner in enumerate(owners[:SCENES])]
    scenes = [(subject, _scenes(subject.class_noun)[index]) for subject, index in shown]
    plain = [scene.text(subject.class_noun) for subject, scene in scenes]
    bare = [prompts.class_prompt(subjects[owner].class_noun) for owner in owners[SCENES:]]
    photos_SRD = [embeddings.embed_files(identity, [photo.path for photo in pool]) for pool in job.photos]
    watch = Watch(
        job.run.path / "looks",
        [scene.named(_called(recipe, subject)) for subject, scene in scenes] + bare,
        samples.settings(recipe),
        identity,
        clip,
        photos_SRD,
        owners,
        embeddings.embed_texts(clip, plain),
        float(np.mean([2 / (len(photos_RD) + 1) for photos_RD in photos_SRD])),
    )
    watch.frozen = watch._score(watch._draw(job.pipe, plain + bare), 0)
    watch.seconds = time.monotonic() - began
    return watch


@torch.no_grad()
def look(job: Job, watch: Watch, step: int, weights: Mapping[str, Tensor]) -> Look:
    """Look at the model as it is: every part on the device, the trained ones as they would be shipped."""
    began = time.monotonic()
    device, dtype = job.accelerator.device, storage_dtype(job.recipe)
    modules = {name: part for name, part in job.pipe.components.items() if isinstance(part, nn.Module)}
    training = [part for part in modules.values() if part.training]
    for name, part in modules.items():
        part.eval().to(device)
        if name == "vae":
            part.to(dtype)
    with job.accelerator.autocast():
        images = watch._draw(job.pipe, watch.texts)
    made = watch.look(images, step, weights)
    for part in training:
        part.train()
    park(job)
    watch.seconds += time.monotonic() - began
    return made


def park(job: Job) -> None:
    """Take the parts that only draw off the accelerator, where anything is: without caches every step needs them."""
    if not job.recipe.cache:
        return
    used = [job.family.denoiser(job.pipe)]
    if methods.trains_text_encoders(job.recipe):
        used += [job.pipe.components[name] for name in placing.text_encoders(job.pipe)]
    for part in placing.parts(job.pipe):
        if not any(part is each for each in used):
            part.to("cpu")


def _called(recipe: Recipe, subject: Subject) -> str:
    return prompts.called(recipe.label, subject.class_noun, subject.identifier or "")


def _scenes(class_noun: str) -> list[dreambench.Prompt]:
    """Evenly chosen scenes of the paper's list; no properties, which change the subject on purpose."""
    whole = [prompt for prompt in dreambench.choose(class_noun) if prompt.kind != "property"]
    return [whole[index] for index in np.linspace(0, len(whole) - 1, SCENES).round().astype(int)]


def _embed(encoder: Encoder, images: Sequence[Image.Image]) -> Rows:
    rows_ND: Rows = encoder.embed_images(torch.stack([encoder.prepare(image) for image in images])).numpy()
    return rows_ND
