"""One row of the Hopper kernels' static table: a `StaticRow`, and what only warp-specialized code can get wrong."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fusedformer.benchmarks.static.row import StaticRow

# The waits for matrix products in an iteration of the steady loop: each is for all but so many of the newest.
WAITS = {
    "attention_hopper_fwd_kernel": (1, 0),  # S(j), with P(j-1) V(j-1) under way; then that
    "attention_hopper_fwd_persistent_kernel": (1, 0),  # the same
    "attention_hopper_fwd_fp8_kernel": (1, 0),  # the same
    "attention_hopper_dq_kernel": (1, 0, 0),  # S, with dP under way; dP; dQ
    "attention_hopper_bwd_kernel": (1, 0, 1, 0),  # S, with dP under way; dP; dV, with dK under way; dK
    "attention_hopper_bwd_kernel fused": (1, 0, 2, 1, 0),  # S, dP; dV, with dK and dQ under way; dK; dQ
    "attention_hopper_dkdv_wide_kernel": (1, 0, 1, 0),  # dK, with dP under way; dP; in the other consumer dV and S so
}

# By kernel and head dimensions: where v, and in gradients k, have a tail, two products stand in the place of one.
TAILED_WAITS = {
    ("attention_hopper_fwd_kernel", "d96"): (2, 0),
    ("attention_hopper_dq_kernel", "d96"): (2, 0, 0),
    ("attention_hopper_bwd_kernel", "d96"): (2, 0, 2, 0),
    ("attention_hopper_bwd_kernel fused", "d96"): (2, 0, 3, 1, 0) * 2,  # of each consumer, which have a half of dQ each
    ("attention_hopper_dkdv_wide_kernel", "d192/128"): (1, 0, 2, 0),  # dK, with dP under way; dP; dV, with S; S
}
# One after the mbarriers are initialised, and one in each of two consumers after its tiles are in shared memory.
FENCES, FUSED_FENCES = 3, 7  # the fused kernel's consumers hand over dS and dQ too, in the loop
# How many stores have no fence by design, for it is threads that read them: those of P, before the loop and in it.
UNFENCED_STORES = {"attention_hopper_dkdv_wide_kernel": 2}


@dataclass(frozen=True, kw_only=True)
class HopperRow(StaticRow):
    """A Hopper kernel compiled for sm_90a."""

    triton: str = ""  # version that compiled it
    consumers: int = 2  # warpgroups of a program, beside the producer's
    waits: tuple[int, ...] = ()  # of the steady loop, see WAITS
    early_arrivals: int = 0  # of mbarriers, with no barrier of the partition's threads since the last wgmma wait
    unfenced_stores: int = 0  # by TMA, with no fence or no barrier since threads wrote to shared memory
    fences: int = 0  # of the async proxy
    most_tflops: float = 0.0  # if everything hides behind the unit `bound`; predicted_tflops is what a model expects

    @property
    def problems(self) -> tuple[str, ...]:
        """Every gate that the variant fails."""
        words = self.variant.split()
        is_fused = "fused" in words
        name = f"{self.kernel} fused" if is_fused else self.kernel
        tailed = (TAILED_WAITS[name, word] for word in words if (name, word) in TAILED_WAITS)
        waits = next(tailed, WAITS.get(name))
        fences = FUSED_FENCES if is_fused else FENCES - 2 + self.consumers
        found = {
            f"waits of the steady loop {self.waits}, designed {waits}": self.waits != waits,
            f"{self.early_arrivals} arrivals that do not wait for all threads": self.early_arrivals > 0,
            f"{self.unfenced_stores} TMA stores without a fence before them": self.unfenced_stores
            > UNFENCED_STORES.get(self.kernel, 0),
            f"{self.fences} fences of the async proxy, designed {fences}": self.fences != fences,
        }
        own = tuple(problem for problem, is_found in found.items() if is_found and self.compiled)
        return super().problems + own

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "HopperRow":
        """The row that `to_dict` described, also after a trip through JSON."""
        row = super().from_dict(fields)
        assert isinstance(row, HopperRow)
        return dataclasses.replace(row, waits=tuple(row.waits))
