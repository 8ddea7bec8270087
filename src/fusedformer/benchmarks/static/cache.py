"""Results of ahead-of-time compiles, kept by content: the key of an entry is a hash of all that its rows depend on.

The first line of an entry is the checksum of the rest, so a damaged one is noticed, and compiled anew. A checkout comes
with a record of all entries of its own kernels, so that only who changes a kernel waits for compilers.
"""

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fusedformer import build
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.files import atomic_write


def key(*parts: str | bytes | int) -> str:
    """The key of what was compiled from `parts`: sources, options and compiler; this program's own are added."""
    return _digest(*parts, _own_sources())


RECORD = Path(build.__file__).parents[2] / "results" / "static.json"


def load(key: str) -> list[StaticRow] | None:
    """The rows stored or recorded under `key`; None if there are none, or damaged ones."""
    try:
        checksum, body = (_folder() / key).read_text().split("\n", 1)
        fields = json.loads(body) if checksum == _digest(body) else None
    except (OSError, ValueError):
        fields = None
    fields = fields or _record().get(key)
    return [StaticRow.from_dict(row) for row in fields] if fields else None


def store(key: str, rows: Iterable[StaticRow]) -> None:
    """Keep rows under `key`, whole or not at all; where nothing can be written, nothing is kept."""
    body = json.dumps([row.to_dict() for row in rows])
    with contextlib.suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(_folder() / key) as partial:
            partial.write_text(f"{_digest(body)}\n{body}")


def record(entries: Mapping[str, Iterable[StaticRow]]) -> None:
    """Write the record: these entries and no others."""
    lines = [json.dumps(key) + ": " + json.dumps([row.to_dict() for row in rows]) for key, rows in entries.items()]
    RECORD.parent.mkdir(exist_ok=True)
    with atomic_write(RECORD) as partial:
        partial.write_text("{\n" + ",\n".join(sorted(lines)) + "\n}\n")
    _record.cache_clear()


@functools.cache
def _record() -> dict[str, list[dict[str, Any]]]:
    try:
        return json.loads(RECORD.read_bytes())
    except (OSError, ValueError):
        return {}


def _folder() -> Path:
    return build.cache_home() / "static"


def _digest(*parts: str | bytes | int) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(b"%d\n%b" % (len(data), data))  # with its length, so that no two lists of parts look the same
    return digest.hexdigest()


@functools.cache
def _own_sources() -> bytes:
    """The code that compiles, measures and describes a row: an entry must not outlive it. Budgets judge rows later.

    Of build.py what makes and reads a cubin: how the extension is put together is nothing to a row.
    """
    own = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != "budgets.py")
    parts: tuple[Callable[..., Any], ...] = (
        build.KernelResources,
        build.compile_cubin,
        build.parse_ptxas,
        build.demangle,
    )
    sources = "".join(inspect.getsource(part) for part in parts) + repr(build.NVCC_FLAGS)
    return b"".join(path.read_bytes() for path in own) + sources.encode()
