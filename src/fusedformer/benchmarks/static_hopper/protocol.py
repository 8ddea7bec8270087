"""What PTX says of the order between threads, tensor core and TMA: rules that no result on a simulator shows.

The simulator takes the threads of a partition for one. In PTX they are 128, so two things are read here:

- An mbarrier arrival by one thread says that all are done, so a barrier of the threads lies between it and the wgmma
  wait before it; else a warp that is late may still wait for a product that reads the tile given back.
- TMA reads shared memory past the threads' own view of it (the async proxy): where threads have stored, a TMA store,
  and an arrival that tells another partition to start one, comes after a fence.proxy.async, and that after the stores
  and before a barrier of the threads. This is read of straight pieces of code, so fences are counted too.

Source: PTX ISA, "Memory Consistency Model: Proxies", "wgmma.wait_group", "mbarrier.arrive".
"""

import re
from collections.abc import Iterator

# What Triton stores at a constant address is what partitions are started with, not a tile.
_EVENTS = re.compile(
    r"\b(?P<wait>wgmma\.wait_group)|\b(?P<sync>(?:bar|barrier)\.sync)|\b(?P<arrival>mbarrier\.arrive\.shared)"
    r"|\b(?P<store>(?:st\.shared|stmatrix)\S*\s+\[\s*%)|(?P<fence>fence\.proxy\.async)"
    r"|(?P<copy>cp\.(?:reduce\.)?async\.bulk\.tensor\S*\.global\.shared)|(?P<edge>^\$\w+:|\bbra\b)",
    re.MULTILINE,
)


def events(ptx: str) -> Iterator[str]:
    """In the order of the text: "wait", "sync", "arrival", "store" of threads, "fence", "copy" (a TMA store or
    reduction), and "edge", where a straight piece of code ends.
    """
    return (str(found.lastgroup) for found in _EVENTS.finditer(ptx))


def early_arrivals(ptx: str) -> int:
    """How many arrivals follow a wgmma wait with no barrier of the threads between."""
    count, is_synced = 0, True
    for event in events(ptx):
        if event in ("wait", "sync"):
            is_synced = event == "sync"
        count += event == "arrival" and not is_synced
    return count


def unfenced_stores(ptx: str) -> int:
    """How many TMA stores, and arrivals, follow a store of threads with no fence, and a barrier after it, between."""
    count = 0
    missing: list[str] = []
    for event in events(ptx):
        if event == "store":
            missing = ["fence", "sync"]
        elif event == "edge":
            missing = []
        elif missing and event == missing[0]:
            del missing[0]
        count += event in ("copy", "arrival") and bool(missing)
    return count


def fences(ptx: str) -> int:
    """How many fences there are."""
    return sum(event == "fence" for event in events(ptx))
