"""The ops: one file each, with its checks, its registration and its gradients; attention, a folder of them."""
