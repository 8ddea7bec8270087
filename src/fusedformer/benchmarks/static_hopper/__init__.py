"""The Hopper kernels in the static world: compiled as for an H200, and held to what their design promises."""
