"""Bugs planted in attention: its masks, strides, offsets, gradients, repairs, and its cache of keys."""

from planted import Bug

ATTENTION_TESTS = ("tests/test_attention.py", "-k", "shared or 70-100")
DECODE_TESTS = ("tests/test_attention_decode.py", "-k", "test_features or test_splits")
GUARD_TESTS = ("tests/test_guard_pages.py", "-k")

BUGS = [
    Bug(
        "causal mask off by one",
        "src/fusedformer/kernels/attention/scores.py",
        "j <= i + (diagonal + right)",
        "j < i + (diagonal + right)",
        ATTENTION_TESTS,
    ),
    Bug(
        "window bound off by one",
        "src/fusedformer/kernels/attention/tiles.py",
        "first = tl.maximum(start_m + diagonal - left, 0)",
        "first = tl.maximum(end_m + diagonal - left, 0)",
        ("tests/test_attention_features.py", "-k", "test_windows"),
        slow=True,
    ),
    Bug(
        "wrong key head of a group",
        "src/fusedformer/kernels/attention/fwd_kernel.py",
        "k_ptr = head_ptr(k_ptr, k_strides, batch, head // group, first_k)",
        "k_ptr = head_ptr(k_ptr, k_strides, batch, head % group, first_k)",
        ATTENTION_TESTS,
        slow=True,
    ),
    Bug(
        "key gradient without its scale",
        "src/fusedformer/kernels/attention/bwd_dkdv_kernel.py",
        "    dk *= scoring.scale\n",
        "",
        ATTENTION_TESTS,
        slow=True,
    ),
    Bug(
        "strides of rows and dimensions swapped",
        "src/fusedformer/kernels/attention/tiles.py",
        "rows * strides[1] + dims * strides[3]",
        "rows * strides[3] + dims * strides[1]",
        ATTENTION_TESTS,
        symptom="times its budget|Segmentation fault",
        slow=True,
    ),
    Bug(
        "offset of 32 bits",
        "src/fusedformer/kernels/attention/tiles.py",
        "rows = (start + tl.arange(0, BLOCK)).to(tl.int64)[:, None]",
        "rows = (start + tl.arange(0, BLOCK)).to(tl.int32)[:, None]",
        ("tests/test_attention_hidden.py", "-k", "past_32_bits and row"),
        symptom="AssertionError|Segmentation fault",
        slow=True,
    ),
    Bug(
        "dropout of key and query exchanged",
        "src/fusedformer/kernels/attention/scores.py",
        "tl.load(scoring.seed_ptr), j, i,",
        "tl.load(scoring.seed_ptr), i, j,",
        ("tests/test_attention_dropout.py", "-k", "index_choose"),
        symptom="AssertionError",
    ),
    Bug(
        "last tile of a packed sequence missing",
        "src/fusedformer/kernels/attention/packing_kernel.py",
        "(ends - begins + BLOCK - 1) // BLOCK",
        "(ends - begins) // BLOCK",
        ("tests/test_attention_packed.py", "-k", "test_lengths and tiles"),
        slow=True,
    ),
    Bug(
        "only the first rows of a tile repaired",
        "src/fusedformer/kernels/attention/bwd_dq_kernel.py",
        "for part_m in tl.range(start_m, tl.minimum(start_m + TILE, seqlen_q), BLOCK_M):",
        "for part_m in tl.range(start_m, start_m + 1, TILE * 2):",
        ("tests/test_attention_hidden.py", "-k", "hidden_keys and window"),
        symptom="Mismatched elements",
        slow=True,
    ),
    Bug(
        "page of the neighbouring sequence",
        "src/fusedformer/kernels/attention/decode/kernel.py",
        "* places.page_stride + batch * places.table_stride",
        "* places.page_stride",
        DECODE_TESTS,
        symptom="times its budget|Segmentation fault",
        slow=True,
    ),
    Bug(
        "new keys rotated by the place in the call",
        "src/fusedformer/kernels/attention/decode/kernel.py",
        "        position = length + new\n",
        "        position = new\n",
        DECODE_TESTS,
        symptom="times its budget",
        slow=True,
    ),
    Bug(
        "splits combined without their peaks",
        "src/fusedformer/kernels/attention/decode/kernel.py",
        "weights = tl.exp(lse - new_peak)",
        "weights = tl.exp(lse)",
        DECODE_TESTS,
        slow=True,
    ),
    Bug(
        "read past the last key",
        "src/fusedformer/kernels/attention/tiles.py",
        "tl.arange(0, BLOCK)[:, None] < length",
        "tl.arange(0, BLOCK)[:, None] <= length",
        (*GUARD_TESTS, "attention and end"),
        symptom="Segmentation fault",
        slow=True,
    ),
]
