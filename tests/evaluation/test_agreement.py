"""The table of evaluators: every difference is what arithmetic says, and the documentation shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dreambooth.evaluation import agreement
from dreambooth.evaluation.agreement import Agreement, rows, synthetic, table
from dreambooth.evaluation.published import SubjectRows

DOC = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def data() -> dict[str, SubjectRows]:
    return synthetic()


@pytest.fixture(scope="module")
def found(data: dict[str, SubjectRows]) -> dict[tuple[str, str], Agreement]:
    return {(row.score, row.evaluator): row for row in rows(data)}


def test_the_embeddings_are_laid_out_like_dreambench(data: dict[str, SubjectRows]) -> None:
    counts = [len(subject.real_RD) for subject in data.values()]
    assert (len(counts), sum(counts), sum(count**2 for count in counts)) == (30, 158, 842)
    assert np.mean([1 / count for count in counts]) == pytest.approx(0.1922, abs=5e-5)
    assert all(subject.generated_PKD.shape[:2] == (25, 4) for subject in data.values())
    for subject in data.values():
        for unit in (subject.real_RD, subject.generated_PKD, *subject.texts_PD.values()):
            np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1)


def test_every_difference_is_the_one_that_arithmetic_gives(found: dict[tuple[str, str], Agreement]) -> None:
    explained = [row for row in found.values() if row.expected is not None]
    assert len(explained) == len(found) - 5
    for row in explained:
        assert row.difference == pytest.approx(row.expected, abs=1e-12), row.evaluator


def test_the_differences_of_the_reference(
    data: dict[str, SubjectRows], found: dict[tuple[str, str], Agreement]
) -> None:
    ours = found["image", "paper, dreambooth"].ours
    for one in ("Textual Inversion", "Custom Diffusion", "cloneofsimo/lora"):
        assert found["image", one].printed == pytest.approx(ours, abs=1e-12)
    assert found["text", "Custom Diffusion"].printed == pytest.approx(2.5 * found["text", "paper, dreambooth"].ours)
    wrong = np.mean(data["backpack_dog"].generated_GD @ data["dog"].real_RD.T)
    meant = found["image", "OFT, exact folders"].printed
    assert found["image", "OFT"].printed == pytest.approx(meant + 500 / 16300 * (wrong - meant))
    assert found["image", "OFT"].printed < meant
    alone, pairs = found["oracle", "dreambooth"].printed, found["oracle", "OFT"].printed
    assert found["oracle", "HRA, most likely"].printed == pytest.approx(pairs + (1 - pairs) * 158 / 842)
    assert found["oracle", "paper, most likely"].printed == pytest.approx(alone + (1 - alone) * 0.1922, abs=1e-3)
    assert found["image", "Kosmos-G, typical photo"].difference > 0.005
    assert found["text", "HRA"].difference < found["text", "with the identifier"].difference < 0


def test_real_embeddings_without_texts_or_dreambenchs_names_have_their_rows(data: dict[str, SubjectRows]) -> None:
    own = {f"own-{name}": SubjectRows(data[name].real_RD, data[name].generated_PKD, {}) for name in ("cat", "vase")}
    scores = {(row.score, row.evaluator): row for row in rows(own)}
    assert {score for score, _ in scores} == {"image", "oracle"}
    assert scores["image", "OFT"].printed == scores["image", "OFT, exact folders"].printed


def test_clipping_is_explained_where_cosines_are_negative(data: dict[str, SubjectRows]) -> None:
    against = {
        name: SubjectRows(rows.real_RD, rows.generated_PKD, {"class": rows.texts_PD["class"] * [[-1]]})
        for name, rows in list(data.items())[:2]
    }
    (clipscore,) = [row for row in rows(against) if (row.score, row.evaluator) == ("text", "Custom Diffusion")]
    assert clipscore.difference == pytest.approx(clipscore.expected)
    assert clipscore.difference > 0.3


def test_the_command_prints_the_table_of_the_documentation() -> None:
    command = [sys.executable, "-m", "dreambooth.evaluation.agreement"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == table(rows(synthetic()))
    shown = re.search(r"<!-- agreement -->\n(.*?)<!-- /agreement -->", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert shown
    assert shown[1].strip() == printed.strip(), f"write what '{' '.join(command[1:])}' prints into {DOC.name}"


def test_the_table_needs_no_torch() -> None:
    code = f"import sys, {agreement.__name__}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
