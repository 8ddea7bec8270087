"""Train a character-level GPT on real text: CPython's own documentation, or any text file.

The floor to beat is the bigram matrix: the best prediction of a character from the one before it.
"""

import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from common import flags, plot_loss, train, verdict
from torch import Tensor

from fusedformer import Decoder, TransformerConfig

BATCH, LEARNING_RATE = 12, 3e-3
TARGET = 0.8  # of the bigram loss


def bigram_loss(train_tokens: Tensor, held_out: Tensor, vocab_size: int) -> float:
    """Held-out loss, in nats per character, of the transition matrix: pairs counted in the training text, plus one."""
    pairs = train_tokens[:-1] * vocab_size + train_tokens[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 1
    log_probabilities = (counts / counts.sum(dim=1, keepdim=True)).log()
    return -log_probabilities[held_out[:-1], held_out[1:]].mean().item()


@torch.no_grad()
def held_out_loss(model: Decoder, held_out: Tensor) -> float:
    """Mean loss over the held-out text, cut into windows of the model's context, with dropout off."""
    model.eval()
    length = model.config.max_seq_len
    windows = held_out[: (len(held_out) - 1) // length * length + 1].unfold(0, length + 1, length)
    return sum(model.loss(batch).item() * len(batch) for batch in windows.split(64)) / len(windows)


def main() -> int:
    parser = flags(__doc__, name="train_decoder", steps=1200)
    parser.add_argument("--text", type=Path, help="a text file (UTF-8); without it, the documentation CPython carries")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    text = args.text.read_text(encoding="utf-8") if args.text else "\n".join(topics.values())
    characters = sorted(set(text))
    code = {character: index for index, character in enumerate(characters)}
    tokens = torch.tensor([code[character] for character in text])
    model = Decoder(TransformerConfig.preset("char-decoder", vocab_size=len(characters))).to(args.device)
    length = model.config.max_seq_len
    split = len(tokens) * 9 // 10
    if len(tokens) - split <= length:
        parser.error(f"the text has {len(tokens)} characters, too few: {10 * length + 10} are enough")
    train_tokens, held_out = tokens[:split], tokens[split:]
    floor = bigram_loss(train_tokens, held_out, len(characters))
    print(f"{len(text):,} characters, {len(characters)} of them different")
    print(f"the floor to beat, the bigram matrix: held-out loss {floor:.4f} nats")

    def next_loss() -> Tensor:
        starts = torch.randint(split - length, (BATCH, 1))
        return model.loss(train_tokens[starts + torch.arange(length + 1)].to(args.device))

    started = time.perf_counter()
    losses = train(model, next_loss, steps=args.steps, learning_rate=LEARNING_RATE)
    rate = args.steps * BATCH * length / (time.perf_counter() - started)

    prompts = train_tokens[:8].expand(3, -1).to(args.device)
    for sample in model.generate(prompts, length - 8, temperature=0.8, top_k=20).tolist():
        print("sample:", repr("".join(characters[token] for token in sample)))
    loss = held_out_loss(model, held_out.to(args.device))
    plot_loss(losses, args.output_dir / "loss.png", {"bigram matrix, held out": floor, "this model, held out": loss})
    target = TARGET * floor
    return verdict(f"{rate:,.0f} tokens/s, held-out loss {loss:.4f} nats, at most {target:.4f} wanted", loss <= target)


if __name__ == "__main__":
    sys.exit(main())
