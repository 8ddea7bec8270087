"""The commands that measure on a GPU, run to their end over values that are wrong: none may raise.

Contenders get no time where their values do not hold, which is most of them; exit codes that say so are fine.
"""

import os
import subprocess
import sys
import tempfile

CODE = "import sys; from fusedformer.cli import main; sys.exit(main())"
COMMANDS = {
    "doctor": ("doctor",),
    "bench": ("bench", "--quick", "layer_norm", "softmax", "gelu"),
    "bench attention": ("bench", "--quick", "attention"),
    "profile": ("profile", "--context", "1k:4k:x2"),
    "tune": ("tune", "--help"),
}


def main(names: list[str]) -> int:
    """Run the commands of these names, all by default; 1 if one leaves a traceback."""
    failed = 0
    for name, arguments in COMMANDS.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [sys.executable, "-c", CODE, *arguments], cwd=folder, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=int(os.environ.get("REHEARSAL_SECONDS", "1200")),
            )  # fmt: skip
        raised = "Traceback (most recent call last)" in result.stdout or "rehearsal: refused" in result.stdout
        failed += raised
        print(f"{'PROBLEM' if raised else 'ok'} {name}: exit code {result.returncode}", flush=True)
        if raised or "-v" in sys.argv:
            print(result.stdout, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main([name for name in sys.argv[1:] if name != "-v"]))
