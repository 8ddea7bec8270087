"""Train a character-level GPT on real text: CPython's own documentation, or any text file.

The floor to beat is the bigram matrix: the best prediction of a character from the one before it.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from common import plot_loss, verdict
from torch import Tensor
from training import train, training_flags

from fusedformer import Decoder, MarkovModel, TransformerConfig

BATCH, LEARNING_RATE = 12, 3e-3
TARGET = 0.8  # of the bigram loss


@torch.no_grad()
def held_out_loss(model: Decoder, held_out: Tensor) -> float:
    """Mean loss over the held-out text, cut into windows of the model's context, with dropout off."""
    model.eval()
    length = model.config.max_seq_len
    windows = held_out[: (len(held_out) - 1) // length * length + 1].unfold(0, length + 1, length)
    return sum(model.loss(batch).item() * len(batch) for batch in windows.split(64)) / len(windows)


def main() -> int:
    parser = training_flags(__doc__, name="train_decoder", steps=1200)
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
    floor = MarkovModel(train_tokens, len(characters), order=1, alpha=1).loss(held_out)
    print(f"{len(text):,} characters, {len(characters)} of them different")
    print(f"the floor to beat, the bigram matrix: held-out loss {floor:.4f} nats")

    def next_loss(index: int) -> Tensor:
        starts = torch.randint(split - length, (BATCH, 1))
        return model.loss(train_tokens[starts + torch.arange(length + 1)].to(args.device))

    steps = train(model, next_loss, args, learning_rate=LEARNING_RATE)
    rate = args.steps * args.accumulate * BATCH * length / sum(step.seconds for step in steps)

    prompts = train_tokens[:8].expand(3, -1).to(args.device)
    for sample in model.generate(prompts, length - 8, temperature=0.8, top_k=20).tolist():
        print("sample:", repr("".join(characters[token] for token in sample)))
    loss = held_out_loss(model, held_out.to(args.device))
    plot_loss(
        [step.loss for step in steps],
        args.output_dir / "loss.png",
        {"bigram matrix, held out": floor, "this model, held out": loss},
    )
    target = TARGET * floor
    return verdict(f"{rate:,.0f} tokens/s, held-out loss {loss:.4f} nats, at most {target:.4f} wanted", loss <= target)


if __name__ == "__main__":
    sys.exit(main())
