"""Traces of a subject's steps on the meta device."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fusedformer.benchmarks.profile.cells import Cell
from fusedformer.benchmarks.profile.contenders import MATH, Attention
from fusedformer.benchmarks.profile.family import Family
from fusedformer.benchmarks.profile.steps import make_step
from fusedformer.benchmarks.profile.subjects import Subject, build_on
from fusedformer.benchmarks.profile.tracing import Trace, Tracer
from fusedformer.transformer import blocks

META = torch.device("meta")


@contextlib.contextmanager
def _as_on(device_type: str) -> Iterator[None]:
    """Models take the ways that they take on `device_type`, though their tensors are on the meta device."""
    original = blocks.product_adds_bias
    blocks.product_adds_bias = lambda x: device_type == "cpu"
    try:
        yield
    finally:
        blocks.product_adds_bias = original


@dataclass(frozen=True)
class Setting:
    """What is traced, but for the context: one line of the result.

    Attributes:
        subject: the model.
        mode: of steps.MODES.
        attention: of contenders.CONTENDERS.
        device_type: "cuda" or "cpu": whose kernels it would run.
        changes: of changes.CHANGES.
    """

    subject: Subject
    mode: str
    attention: str
    device_type: str = "cuda"
    changes: frozenset[str] = frozenset()

    def cell(self, section: str, **fields: Any) -> Cell:
        """A figure of this setting, with these fields of a cell."""
        return Cell(section=section, model=self.subject.name, mode=self.mode, attention=self.attention, **fields)

    def trace(self, context: int, n_layers: int | None) -> Trace:
        """Trace the step of one context; `n_layers` blocks, None for all.

        Raises:
            NoSuchStepError: the model has no such step.
            ValueError: the model cannot be built, or not be computed by this attention.
        """
        built = build_on(META, self.subject, context, n_layers)
        step = make_step(built, self.mode, context, META, self.changes)
        with Tracer(step.model, device_type=self.device_type) as tracer:
            for kind, held in step.held.items():
                tracer.hold(kind, held)
            with Attention(self.attention, self.device_type, tracer.scope), _as_on(self.device_type):
                step.run(tracer)
        return tracer.trace

    def family(self, low: int, high: int) -> Family:
        """The traces of every context, from some between these; with changes, of which only the memory is asked for,
        from as few as that takes.
        """
        length = self.subject.length
        high = max(high, low + 8)  # so that they differ, whatever the range
        third = (high - low) // 3
        ends, inner = [length(low), length(high)], [length(low + third), length(high - third)]
        if not self.changes:
            return Family(self.trace, self.subject.n_layers, [*ends, inner[0]], inner[1])
        lengths = [*ends, inner[0]] if self.attention == MATH else ends
        return Family(self.trace, self.subject.n_layers, lengths, None)
