"""The `fusedformer` command; the commands themselves are in benchmarks/commands.py."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say which extra it needs."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(f"fusedformer needs {' and '.join(missing)}: pip install 'fusedformer[bench]'", file=sys.stderr)
        sys.exit(2)
    from fusedformer.benchmarks.commands import app

    app()
