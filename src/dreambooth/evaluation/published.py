"""The formulas of published DreamBench evaluators, on embeddings that are already there.

Each does what the named code does after its encoder, mistakes included, and returns the figure that this code prints.
So differences between papers can be told apart: what is due to the formula shows here, the rest is the encoder, its
preprocessing, and the pictures. `agreement` puts them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dreambooth.evaluation.metrics import Rows, Values, oracle, to_references, to_text


@dataclass(frozen=True)
class SubjectRows:
    """What evaluators know of one subject: unit rows by one encoder, P prompts with K pictures each.

    Attributes:
        real_RD: Photos.
        generated_PKD: Pictures.
        texts_PD: Texts of the prompts as each text rule has them: "class", "identifier", ...; empty for an encoder that
            reads no text.
    """

    real_RD: Rows
    generated_PKD: Rows
    texts_PD: Mapping[str, Rows]

    @property
    def generated_GD(self) -> Rows:
        """All pictures, prompt by prompt."""
        return self.generated_PKD.reshape(-1, self.generated_PKD.shape[-1])

    def text_GD(self, rule: str) -> Rows:
        """The text of each picture."""
        return np.repeat(self.texts_PD[rule], self.generated_PKD.shape[1], axis=0)


Dataset = Mapping[str, SubjectRows]
"""Subjects by the name of their folder."""


def paper_image(data: Dataset) -> float:
    """DINO or CLIP-I, and this project's default: all pairs of a subject, subjects weigh the same.

    Ruiz et al. 2023, section 4.1.
    """
    return _mean_of_subjects(data, lambda subject: to_references(subject.generated_GD, subject.real_RD))


def paper_text(data: Dataset, rule: str = "class") -> float:
    """CLIP-T: cosine between picture and prompt. Ruiz et al. 2023, section 4.1; the text rule is open there."""
    return _mean_of_subjects(data, lambda subject: to_text(subject.generated_GD, subject.text_GD(rule)))


def textual_inversion_image(data: Dataset) -> float:
    """All pairs of a concept at once. rinongal/textual_inversion, evaluation/clip_eval.py.

    Custom Diffusion has the same (adobe-research/custom-diffusion, customconcept101/evaluate.py).
    """
    return float(np.mean([(subject.real_RD @ subject.generated_GD.T).mean() for subject in data.values()]))


def cloneofsimo_image(data: Dataset) -> float:
    """Product with the mean of the unit references, which is not brought back to unit length: all pairs again.

    cloneofsimo/lora, lora_diffusion/utils.py, text_img_alignment. Its first version printed the sum as "avg".
    """
    return _mean_of_subjects(data, lambda subject: subject.generated_GD @ subject.real_RD.mean(axis=0))


def custom_diffusion_text(data: Dataset) -> float:
    """CLIPScore: 2.5 times the cosine clipped at 0. adobe-research/custom-diffusion, customconcept101/evaluate.py."""
    rows = [to_text(subject.generated_GD, subject.text_GD("class")) for subject in data.values()]
    return float(np.mean([2.5 * np.clip(row_G, 0, None).mean() for row_G in rows]))


def kosmos_g_image(data: Dataset, chosen: Mapping[str, int]) -> float:
    """100 times the cosine to one photo that somebody chose, mean over all pictures.

    microsoft/unilm, kosmos-g/eval/dino_score.py.
    """
    return max(0.0, 100 * _mean_of_pictures(data, lambda name: _to_one(data[name], chosen[name])))


def kosmos_g_text(data: Dataset) -> float:
    """100 times the cosine to the prompt with the class noun. microsoft/unilm, kosmos-g/eval/clip_score.py."""
    rows = _mean_of_pictures(data, lambda name: to_text(data[name].generated_GD, data[name].text_GD("class")))
    return max(0.0, 100 * rows)


def dreambench_plus_image(data: Dataset) -> float:
    """100 times the cosine to the only photo, mean over all pictures.

    yuangpeng/dreambench_plus, dreambench_plus/metrics/dino_score.py and clip_score.py.
    """
    return 100 * _mean_of_pictures(data, lambda name: _to_one(data[name], 0))


def oft_image(data: Dataset, exact_folders: bool = False) -> float:
    """One mean over all pairs of all subjects, so a subject weighs as much as it has photos.

    Zeju1997/oft, oft-db/eval.py. It looks for a subject's pictures in the folders whose names contain "SUBJECT-", so
    that "dog" also takes "backpack_dog-0", "backpack_dog-1", ...

    Args:
        data: The subjects.
        exact_folders: Take the folders that were meant.
    """
    pairs = []
    for name, subject in data.items():
        same = [other for other in data if other == name or (f"{name}-" in f"{other}-0" and not exact_folders)]
        pairs += [(subject.real_RD @ data[other].generated_GD.T).ravel() for other in same]
    return float(np.concatenate(pairs).mean())


def oft_oracle(data: Dataset) -> float:
    """Photos against other photos, one mean over all pairs. Zeju1997/oft, oft-db/eval.py, SelfPairwise*."""
    return _oracle_of_pairs(data, self_pairs=False)


def hra_oracle(data: Dataset) -> float:
    """Photos against photos with themselves, one mean over all pairs.

    The row of DaShenZi721/HRA as far as its figures tell: the code of that row was not released.
    """
    return _oracle_of_pairs(data, self_pairs=True)


def paper_oracle(data: Dataset, self_pairs: bool) -> float:
    """Photos against photos, subjects weigh the same. "Real images" of Ruiz et al. 2023, table 1."""
    return _mean_of_subjects(data, lambda subject: oracle(subject.real_RD, self_pairs))


def hra_image(data: Dataset) -> float:
    """Mean over the folders of each subject and prompt of the mean over all pairs in it.

    DaShenZi721/HRA, generation/subject/evaluate.py and get_result.py, without its choice of each folder's checkpoint
    by the scores themselves.
    """
    folders = [(subject, pictures_KD) for subject in data.values() for pictures_KD in subject.generated_PKD]
    return float(np.mean([(subject.real_RD @ pictures_KD.T).mean() for subject, pictures_KD in folders]))


def hra_text(data: Dataset) -> float:
    """CLIP-T with the identifier, and against the prompts for live subjects even where an object was drawn.

    DaShenZi721/HRA, generation/subject/evaluate.py, get_prompt: it knows only that list, while
    train_dreambooth_hra.sh draws objects by theirs.
    """
    return paper_text(data, "hra")


def _mean_of_subjects(data: Dataset, rows: Callable[[SubjectRows], Values]) -> float:
    return float(np.mean([rows(subject).mean() for subject in data.values()]))


def _mean_of_pictures(data: Dataset, rows: Callable[[str], Values]) -> float:
    return float(np.concatenate([rows(name) for name in data]).mean())


def _to_one(subject: SubjectRows, photo: int) -> Values:
    return to_references(subject.generated_GD, subject.real_RD, f"fixed:{photo}")


def _oracle_of_pairs(data: Dataset, self_pairs: bool) -> float:
    rows = [oracle(subject.real_RD, self_pairs) for subject in data.values()]
    pairs = [len(row_R) - (not self_pairs) for row_R in rows]
    total = sum(count * row_R.sum() for count, row_R in zip(pairs, rows, strict=True))
    return float(total / sum(count * len(row_R) for count, row_R in zip(pairs, rows, strict=True)))
