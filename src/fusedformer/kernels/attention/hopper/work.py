"""Which tiles of queries the programs of a persistent grid compute, and in which order.

There are planes (heads of all batches) x tiles of work, in the order of `place_of`: planes come in sections, so few
that several SMs read the keys of each at a time; in a section, tiles of all its planes in turn, the last rows first,
which take longest when causal. The programs take `num_programs` of them in each round, in the opposite order in every
second one, so that who had the longest of a round has the shortest of the next.

benchmarks/static_hopper/schedule.py has the same in Python, and what it is worth.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


class Work(NamedTuple):
    """All that the programs of a launch compute."""

    planes: Any
    tiles: Any  # of queries, of a plane
    section: Any  # planes


@gluon.jit
def _item(number):
    """What this program does after `number` others."""
    programs = gl.num_programs(0)
    place = gl.program_id(0)
    if number % 2 == 1:
        place = programs - 1 - place
    return number * programs + place


@gluon.jit
def count_of(work):
    """How many tiles this program computes."""
    items = work.planes * work.tiles
    count = items // gl.num_programs(0)
    if _item(count) < items:
        count += 1
    return count


@gluon.jit
def place_of(number, work):
    """Plane and tile, counted from the last, of this program's tile `number`."""
    item = _item(number)
    of_section = work.section * work.tiles
    first = item // of_section * work.section
    planes = gl.minimum(work.section, work.planes - first)
    return first + item % of_section % planes, item % of_section // planes
