"""Fixtures shared by all tests: the debug models, built once a session."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported, so before everything below

from tests import debug_models

LONGEST = ("test_learning", "test_processes", "test_methods_study", "test_readme", "test_memory", "test_resume")
"""Files of minutes. One that is begun last is waited for by every worker but its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DREAMBOOTH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def debug_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What builds a debug model by its name, once, and returns its folder. Read it, never write to it."""
    return functools.cache(lambda name: debug_models.build(name, tmp_path_factory.mktemp("models") / name))


@pytest.fixture(scope="session")
def tiny_sd(debug_folder: Callable[[str], Path]) -> Path:
    """Folder of the debug Stable Diffusion that predicts the noise. Read it, never write to it."""
    return debug_folder("sd")


@pytest.fixture(scope="session")
def tiny_sd_v(debug_folder: Callable[[str], Path]) -> Path:
    """Folder of the debug Stable Diffusion that predicts the velocity. Read it, never write to it."""
    return debug_folder("sd-v")
