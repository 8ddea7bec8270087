"""What the simulator says of a kernel."""


class Hazard(Exception):  # noqa: N818, the field's word
    """What the kernel did is undefined on the GPU, or depends on timing there."""


class Deadlock(Hazard):
    """Every partition waits, and nothing is under way that could let one go on."""


class UnsupportedError(Exception):
    """The kernel uses a part of Gluon that the simulator lacks: this says nothing about the kernel."""
