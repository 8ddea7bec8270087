"""Files that appear whole or not at all."""

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new, empty file beside `path` to write to; it takes the name `path` at the end, on the disk by then.

    If the body raises, the new file is removed, and what `path` held before stays. Permissions are those of any new
    file: 0666 less the umask.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        ValueError: `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.touch(mode=0o666, exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        os.chmod(temporary, mode)  # safetensors puts a file of its own in the place of this one, with mode 0600
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # the new name, too


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
