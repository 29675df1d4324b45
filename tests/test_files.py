"""Files appear whole, with ordinary rights, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dreambooth.files import atomic, atomic_folder, write_json, write_text


@pytest.mark.skipif(os.name == "nt", reason="rights are POSIX's")
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "text", "a")
        with atomic(tmp_path / "picture") as temporary:
            temporary.write_bytes(b"a")
        with atomic_folder(tmp_path / "folder") as folder:
            write_json(folder / "file", {})
    finally:
        os.umask(before)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert rights == {"text": 0o644, "picture": 0o644, "folder": 0o755, "file": 0o644}


@pytest.mark.skipif(os.name == "nt", reason="rights are POSIX's")
@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_others_may_read_what_a_library_has_kept_to_itself(umask: int, file: int, folder: int, tmp_path: Path) -> None:
    """As safetensors writes its files."""

    def write(path: Path) -> None:
        path.write_bytes(b"a")
        path.chmod(0o600)

    before = os.umask(umask)
    try:
        with atomic(tmp_path / "weights") as temporary:
            write(temporary)
        with atomic_folder(tmp_path / "folder") as made:
            (made / "inner").mkdir()
            write(made / "inner" / "file")
    finally:
        os.umask(before)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert rights == {"weights": file, "folder": folder, "inner": folder, "file": file}


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "old")
    with atomic_folder(tmp_path / "folder") as folder:
        write_text(folder / "file", "old")

    def break_off(half: Path) -> None:
        write_text(half, "half")
        raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"), atomic(tmp_path / "text") as temporary:
        break_off(temporary)
    with pytest.raises(ValueError, match="broke"), atomic_folder(tmp_path / "folder") as folder:
        break_off(folder / "file")
    assert (tmp_path / "text").read_text() == "old"
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "text"]
