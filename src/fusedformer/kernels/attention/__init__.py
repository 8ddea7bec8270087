"""Attention, the one op whose device code is Triton. What is where, in the order of a call:

op.py               `attention` and `attention_backward`: arguments, registration, gradients
sdpa.py             the same by PyTorch's signature; flash_attn.py: by flash-attn's
inputs.py           checks; extras.py: what the op takes beside q, k and v
launch.py           one call's launches; tuning.py: the tile of each
fwd_kernel.py, bwd_*_kernel.py, packing_kernel.py
                    the kernels; tiles.py, scores.py and bwd_kernel.py: what they share
reference.py        the definition; aten.py: on a CPU, through PyTorch
variants.py         what the static world compiles
fp8/                the same for float8 tensors, forward only
hopper/             kernels for sm_90 in Gluon
decode/             the same for a cache of keys: `flash_attn_with_kvcache`
"""
