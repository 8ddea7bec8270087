"""Processes that end together with whatever they started, and words for how one ended."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process group of its own; `options` are subprocess.Popen's."""
    return subprocess.Popen(command, text=True, start_new_session=True, **options)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill its whole group, part of which may outlive the process itself; nothing if all are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def ending(status: int) -> str:
    """Such as "died of SIGSEGV", or "exited with status 1"."""
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
