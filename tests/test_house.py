"""Limits that keep the code readable, and the walls between its rooms."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import dreambooth

SOURCE = Path(dreambooth.__path__[0])
FILES = sorted(SOURCE.rglob("*.py"))
LIMITS = {"families": 200, "methods": 150}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    docstring = ast.get_docstring(function, clean=False)
    return (function.end_lineno or 0) - function.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(path, node) for path, tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short(path: Path) -> None:
    limit = LIMITS.get(path.parent.name, 400)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_functions_are_short() -> None:
    long = [f"{path.name}:{node.name} {length(node)}" for path, node in functions() if length(node) > 60]
    assert not long
    assert statistics.median(length(node) for _, node in functions()) <= 10


def test_public_functions_say_what_they_do() -> None:
    silent = [
        f"{path.name}:{node.name}"
        for path, node in functions()
        if not node.name.startswith("_") and ast.get_docstring(node) is None and not is_nested(path, node)
    ]
    assert not silent


def is_nested(path: Path, function: ast.AST) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    outer = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    name, line = getattr(function, "name", ""), getattr(function, "lineno", 0)
    return any(o.lineno < line <= (o.end_lineno or 0) and o.name != name for o in outer)


def test_no_pickle_and_no_home_of_this_machine() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "torch.save(" not in text, path
        assert "torch.load(" not in text, path
        assert "import pickle" not in text, path
        assert "/work/" not in text, path


def test_importing_the_package_imports_no_torch() -> None:
    code = "import dreambooth, sys; print(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_public_names() -> None:
    expected = ["Recipe", "Run", "RunError", "Subject", "UserError", "evaluate", "generate", "report", "train"]
    assert dreambooth.__all__ == expected
    assert dir(dreambooth) == expected
    for name in expected:
        value = getattr(dreambooth, name)
        assert callable(value)
        assert value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dreambooth.nonsense  # type: ignore[attr-defined]
