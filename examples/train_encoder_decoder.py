"""Train an encoder-decoder to reverse sequences of symbols: cross-attention must learn to read from the far end."""

import sys

import torch
from common import plot_loss, verdict
from torch import Tensor
from training import train, training_flags

from fusedformer import EncoderDecoder, TransformerConfig

BATCH, LEARNING_RATE, TARGET = 64, 2e-3, 0.99
SHORTEST, LONGEST, N_HELD_OUT = 4, 16, 1000
EOS = 1  # ends a target and pads behind it; the start token is 0, the symbols are the others


def reversals(n: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random sources with their masks, and their reversals, each ended by an end token, with their masks."""
    length = torch.randint(SHORTEST, LONGEST + 1, (n, 1))
    position = torch.arange(LONGEST + 1)
    symbols = torch.randint(EOS + 1, vocab_size, (n, LONGEST + 1))
    source = symbols.where(position < length, EOS)
    backwards = symbols.gather(1, (length - 1 - position).clamp(min=0)).where(position < length, EOS)
    return source, position < length, backwards, position <= length


def main() -> int:
    args = training_flags(__doc__, name="train_encoder_decoder", steps=1000).parse_args()
    torch.manual_seed(args.seed)
    model = EncoderDecoder(TransformerConfig.preset("reversal")).to(args.device)

    def batch(n: int) -> list[Tensor]:
        return [tensor.to(args.device) for tensor in reversals(n, model.config.vocab_size)]

    def next_loss(index: int) -> Tensor:
        source, source_mask, target, target_mask = batch(BATCH)
        return model.loss(source, target, source_mask, target_mask)

    steps = train(model, next_loss, args, learning_rate=LEARNING_RATE)
    source, source_mask, target, _ = batch(N_HELD_OUT)
    written = model.generate(source, LONGEST + 1, attention_mask=source_mask, eos_token_id=EOS, temperature=0)
    exact = (written == target).all(dim=1).float().mean().item()
    print("read: ", *source[0, source_mask[0]].tolist())
    print("wrote:", *written[0, target[0] != EOS].tolist())
    plot_loss([step.loss for step in steps], args.output_dir / "loss.png")
    figure = f"{exact:.1%} of {N_HELD_OUT} new sequences reversed exactly, at least {TARGET:.0%} wanted"
    return verdict(figure, exact >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
