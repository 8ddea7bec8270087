"""What the simulator says of a kernel."""

from typing import NoReturn


class Hazard(Exception):  # noqa: N818, the field's word
    """What the kernel did is undefined on the GPU, or depends on timing there."""


class Deadlock(Hazard):
    """Every partition waits, and nothing is under way that could let one go on."""


class UnsupportedError(Exception):
    """The kernel uses a part of Gluon that the simulator lacks: this says nothing about the kernel."""


class Refusing:
    """A value of kernels that has further methods in Gluon."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedError(f".{name} of a {type(self).__name__}")
