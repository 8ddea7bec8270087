"""Files appear whole or not at all, with the permissions of any new file."""

import os
from pathlib import Path

import pytest

from fusedformer.files import atomic_write


def test_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        assert first != second


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.unlink()  # as a library does that writes by the same recipe
            temporary.touch(mode=0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*: it is a folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"), atomic_write(tmp_path / "nowhere/f"):
        pass
