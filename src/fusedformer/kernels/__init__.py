"""The ops: one file each, with its checks, its registration, its gradients and, for Triton, its device code."""
