"""Models: training steps, generation (static caches are replayed as CUDA graphs), torch.compile; nothing may fail."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import counts  # type: ignore[import-not-found]  # beside this file
import torch
from torch import Tensor

import fusedformer
from fusedformer import TransformerConfig

WIDTH: dict[str, Any] = {"d_model": 256, "n_layers": 2, "n_heads": 4, "d_ff": 512}
TEXT: dict[str, Any] = {**WIDTH, "vocab_size": 512, "max_seq_len": 128}
IMAGES: dict[str, Any] = {**WIDTH, "image_size": 64, "patch_size": 16, "n_channels": 3, "n_classes": 10}
MODERN: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rms",
    "activation": "swiglu",
    "bias": False,
    "n_kv_heads": 2,
    "dropout": 0.1,
}


def train(model: torch.nn.Module, *inputs: Tensor) -> None:
    """Forward, backward and a step of AdamW, twice, in bfloat16."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            out = model(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def patched(model: torch.nn.Module, x: Tensor) -> None:
    """The same for PyTorch's model with the package's kernels in it."""
    fusedformer.patch(model)
    train(model, x)


def compiled(model: torch.nn.Module, tokens: Tensor) -> None:
    """The forward in one graph."""
    with torch.no_grad():
        torch.compile(model.eval(), fullgraph=True)(tokens)


def cases() -> dict[str, Callable[[], object]]:
    """What is done, by name."""
    tokens = torch.zeros(2, 64, dtype=torch.int64, device="cuda")
    images = torch.zeros(2, 3, 64, 64, device="cuda")
    padding = torch.ones(2, 64, dtype=torch.bool, device="cuda")
    with torch.device("cuda"):
        decoder = fusedformer.Decoder(TransformerConfig(**TEXT, **MODERN))
        alibi = fusedformer.Decoder(TransformerConfig(**TEXT, positions="alibi"))
        encoder = fusedformer.Encoder(TransformerConfig(**TEXT))
        pair = fusedformer.EncoderDecoder(TransformerConfig(**TEXT, positions="relative"))
        vision = fusedformer.VisionTransformer(TransformerConfig(**IMAGES))
        plain = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(256, 4, 512, batch_first=True), 2)
    half = fusedformer.Decoder(TransformerConfig(**TEXT, **MODERN)).to("cuda", torch.bfloat16).eval()
    return {
        "Decoder": lambda: train(decoder, tokens),
        "Decoder, padding": lambda: train(decoder, tokens, padding),
        "Decoder, ALiBi": lambda: train(alibi, tokens),
        "Encoder": lambda: train(encoder, tokens, padding),
        "EncoderDecoder": lambda: train(pair, tokens, tokens),
        "VisionTransformer": lambda: train(vision, images),
        "patch": lambda: patched(plain, torch.zeros(2, 64, 256, device="cuda")),
        "generate": lambda: half.generate(tokens, 8),
        "generate, static cache": lambda: half.generate(tokens, 8, static_cache=True),
        "generate, sampled": lambda: half.generate(tokens, 8, temperature=0.8, top_k=20, top_p=0.9),
        "generate, pair": lambda: pair.eval().generate(tokens, 8),
        "torch.compile": lambda: compiled(half, tokens),
    }


def main(words: list[str]) -> int:
    """Check the cases whose names hold one of `words`, all by default, and print what fails; 1 if something does."""
    torch.set_num_threads(1)
    failed = 0
    for name, act in cases().items():
        if words and not any(word in name for word in words):
            continue
        before = counts.read()
        try:
            act()
        except Exception:
            traceback.print_exc()
            failed += 1
            print(f"PROBLEM {name}", flush=True)
            continue
        after = counts.read() - before
        failed += after["refusals"] > 0
        print(f"{'PROBLEM' if after['refusals'] else 'ok'} {name}: {dict(after)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
