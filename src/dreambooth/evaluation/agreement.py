"""Published evaluators side by side on the same embeddings: `python -m dreambooth.evaluation.agreement`.

What differs is the formula alone, and each difference is explained by arithmetic. The embeddings of the command are
made up, laid out like DreamBench; `rows` takes real ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreambooth.evaluation import published
from dreambooth.evaluation.dreambench import LIVE_PROMPTS, SUBJECTS, Prompt, choose
from dreambooth.evaluation.metrics import Rows, to_references, to_text
from dreambooth.evaluation.published import Dataset, SubjectRows

DIMENSIONS = 64
PICTURES = 4


@dataclass(frozen=True)
class Agreement:
    """One evaluator's figure next to ours.

    Attributes:
        score: "image" (DINO, CLIP-I), "text" (CLIP-T) or "oracle" (real against real).
        evaluator: Whose formula.
        printed: What its code prints.
        unit: What 1 of ours is in its figure: 100 for percent, 2.5 for CLIPScore.
        ours: Our default on the same embeddings.
        expected: The difference by arithmetic; None where the embeddings decide.
        why: The arithmetic in words.
    """

    score: str
    evaluator: str
    printed: float
    unit: float
    ours: float
    expected: float | None
    why: str

    @property
    def difference(self) -> float:
        """Its figure in our unit, minus ours."""
        return self.printed / self.unit - self.ours


def rows(data: Dataset) -> list[Agreement]:
    """Return every evaluator's row on given embeddings.

    Args:
        data: Subjects by folder, two photos each at least. Rows of CLIP-T are left out for texts that are not there.
    """
    rules = set.intersection(*(set(subject.texts_PD) for subject in data.values()))
    return [*_images(data), *(_texts(data, rules) if "class" in rules else []), *_oracles(data)]


def table(found: Sequence[Agreement]) -> str:
    """Return the rows as a table in Markdown."""
    head = ["score", "evaluator", "prints", "in our unit", "minus ours", "by arithmetic", "because"]
    lines = [head, ["---"] * len(head)]
    for row in found:
        expected = "open" if row.expected is None else _signed(row.expected)
        scaled = f"{row.printed / row.unit:.4f}"
        cells = [row.score, row.evaluator, f"{row.printed:.4f}", scaled, _signed(row.difference), expected, row.why]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def synthetic(seed: int = 0) -> dict[str, SubjectRows]:
    """Return made-up embeddings laid out like DreamBench: 30 subjects, their 158 photos, 25 prompts x 4 pictures.

    A picture is a mixture of its subject's direction, its prompt's and noise, mixed so that the figures come near to
    those of the paper. Subjects of a class lie near one another, and subjects are learned well or less well.
    """
    rng = np.random.default_rng(seed)
    nouns = sorted({noun for noun, _ in SUBJECTS.values()})
    common_D, class_ND = _unit(rng.normal(size=DIMENSIONS)), _unit(rng.normal(size=(len(nouns), DIMENSIONS)))
    scenes = sorted({prompt.scene for noun in ("dog", "can") for prompt in choose(noun)})
    scene_ND = dict(zip(scenes, _unit(rng.normal(size=(len(scenes), DIMENSIONS))), strict=True))
    data = {}
    for name, (noun, photos) in SUBJECTS.items():
        class_D = class_ND[nouns.index(noun)]
        subject_D = _unit(0.4 * common_D + 0.4 * class_D + 0.8 * _unit(rng.normal(size=DIMENSIONS)))
        data[name] = _subject(rng, noun, photos, subject_D, class_D, scene_ND)
    return data


def main() -> None:
    """Print the table of the made-up embeddings."""
    print(table(rows(synthetic())), end="")


def _subject(
    rng: np.random.Generator, noun: str, photos: int, subject_D: Rows, class_D: Rows, scene_ND: Mapping[str, Rows]
) -> SubjectRows:
    prompts = choose(noun)
    asked_PD = np.stack([scene_ND[prompt.scene] for prompt in prompts])
    real_RD = _mixed(rng, 0.85 * np.repeat(subject_D[None], photos, axis=0), 0.53)
    learned = rng.uniform(0.65, 0.9)
    meant_PKD = np.repeat((learned * subject_D + 0.3 * asked_PD)[:, None], PICTURES, axis=1)
    identifier_D = _unit(rng.normal(size=DIMENSIONS))

    def texts(of: Sequence[Prompt], identifier: float) -> Rows:
        scenes_PD = np.stack([scene_ND[prompt.scene] for prompt in of])
        return _unit(scenes_PD + 0.2 * class_D + identifier * identifier_D)

    named = {"class": texts(prompts, 0), "identifier": texts(prompts, 0.3), "hra": texts(LIVE_PROMPTS, 0.3)}
    return SubjectRows(real_RD, _mixed(rng, meant_PKD, 0.4), named)


def _mixed(rng: np.random.Generator, meant: Rows, noise: float) -> Rows:
    return _unit(meant + noise * _unit(rng.normal(size=meant.shape)))


def _unit(vectors: Rows) -> Rows:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _images(data: Dataset) -> list[Agreement]:
    ours = published.paper_image(data)
    medoids = {name: int((subject.real_RD @ subject.real_RD.T).sum(axis=0).argmax()) for name, subject in data.items()}

    def row(evaluator: str, printed: float, expected: float | None, why: str, unit: float = 1) -> Agreement:
        return Agreement("image", evaluator, printed, unit, ours, expected, why)

    weights, bug = _weighing(data), _folder_bug(data)
    chosen = "one reference; 0 on average over all choices of it"
    return [
        row("paper, dreambooth", ours, 0.0, "the default"),
        row("Textual Inversion", published.textual_inversion_image(data), 0.0, "all pairs"),
        row("Custom Diffusion", published.textual_inversion_image(data), 0.0, "all pairs"),
        row("cloneofsimo/lora", published.cloneofsimo_image(data), 0.0, "mean of the unit references: all pairs"),
        row("HRA, one checkpoint", published.hra_image(data), 0.0, "all pairs of each prompt"),
        row("Kosmos-G, photo 0", published.kosmos_g_image(data, dict.fromkeys(data, 0)), None, chosen, 100),
        row("Kosmos-G, typical photo", published.kosmos_g_image(data, medoids), None, chosen, 100),
        row("DreamBench++", published.dreambench_plus_image(data), None, "photo 0; there it is the only one", 100),
        row("OFT, exact folders", published.oft_image(data, True), weights, "cov(photos, score) / mean(photos)"),
        row("OFT", published.oft_image(data), bug, "as above, and `dog` pools the pictures of `backpack_dog`"),
    ]


def _texts(data: Dataset, rules: set[str]) -> list[Agreement]:
    ours = published.paper_text(data)

    def row(evaluator: str, printed: float, expected: float | None, why: str, unit: float = 1) -> Agreement:
        return Agreement("text", evaluator, printed, unit, ours, expected, why)

    clipscore, scale = published.custom_diffusion_text(data), "times 2.5; adds the negative cosines that it clips"
    found = [
        row("paper, dreambooth", ours, 0.0, "the default: class noun, no identifier"),
        row("Textual Inversion", ours, 0.0, "identifier removed: the same"),
        row("cloneofsimo/lora", ours, 0.0, "identifier replaced by the class noun: the same"),
        row("Kosmos-G", published.kosmos_g_text(data), 0.0, "times 100", 100),
        row("Custom Diffusion", clipscore, _clipped(data), scale, 2.5),
    ]
    if "identifier" in rules:
        why = "depends on how the encoder reads a rare token"
        found.append(row("with the identifier", published.paper_text(data, "identifier"), None, why))
    if "hra" in rules:
        why = "identifier, and a wrong text for 28 % of the pictures"
        found.append(row("HRA", published.hra_text(data), None, why))
    return found


def _oracles(data: Dataset) -> list[Agreement]:
    alone, pairs = published.paper_oracle(data, False), published.oft_oracle(data)
    counts = np.array([len(subject.real_RD) for subject in data.values()])
    scores = np.array([published.paper_oracle({name: data[name]}, False) for name in data])
    with_self = float(np.mean((1 - scores) / counts))
    share = counts.sum() / (counts**2).sum()
    weights = counts * (counts - 1)
    weighing = float((weights * scores).sum() / weights.sum() - scores.mean())

    def row(evaluator: str, printed: float, expected: float, why: str, ours: float = alone) -> Agreement:
        return Agreement("oracle", evaluator, printed, 1, ours, expected, why)

    of_pairs = f"(1 - m) {counts.sum()}/{(counts**2).sum()}, next to OFT's row"
    return [
        row("dreambooth", alone, 0.0, "no self-pairs"),
        row("paper, most likely", published.paper_oracle(data, True), with_self, "self-pairs: mean of (1 - m) / n"),
        row("OFT", pairs, weighing, "no self-pairs, one mean over all pairs"),
        row("HRA, most likely", published.hra_oracle(data), float((1 - pairs) * share), of_pairs, pairs),
    ]


def _weighing(data: Dataset) -> float:
    """What weighing subjects by their photos does: cov(n, m) / mean(n)."""
    counts = np.array([len(subject.real_RD) for subject in data.values()], dtype=float)
    scores = np.array([published.paper_image({name: subject}) for name, subject in data.items()])
    return float(((counts - counts.mean()) * scores).mean() / counts.mean())


def _folder_bug(data: Dataset) -> float:
    """What pooling does besides: 500 pairs of a dog's photos and a backpack's pictures join 15,800 right ones."""
    if not {"dog", "backpack_dog"} <= set(data):
        return _weighing(data)
    wrong = to_references(data["backpack_dog"].generated_GD, data["dog"].real_RD)
    right = sum(len(subject.real_RD) * len(subject.generated_GD) for subject in data.values())
    joined = len(wrong) * len(data["dog"].real_RD)
    meant = published.paper_image(data) + _weighing(data)
    return _weighing(data) + float(joined / (right + joined) * (wrong.mean() - meant))


def _clipped(data: Dataset) -> float:
    """What clipping at 0 adds to the mean cosine."""
    rows = [to_text(subject.generated_GD, subject.text_GD("class")) for subject in data.values()]
    return float(-np.mean([np.clip(row_G, None, 0).mean() for row_G in rows]))


def _signed(value: float) -> str:
    """Four decimals with a sign; rounding errors are 0."""
    return "0" if abs(value) < 5e-5 else f"{value:+.4f}"


if __name__ == "__main__":
    main()
