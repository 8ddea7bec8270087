r"""Train a character-level GPT on real text: CPython's own documentation, or any text file.

The floor to beat is the bigram matrix: the best prediction of a character from the one before it.

On a GPU, nanoGPT's published run over tiny Shakespeare, to its best validation loss, timed:

    python examples/train_decoder.py --text tinyshakespeare.txt --preset char-decoder-large --batch 64 --bf16 \
        --learning-rate 1e-3 --steps 5000 --evaluate-every 250 --target 1.4697
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from common import plot_loss, positive, verdict
from torch import Tensor
from training import Evaluation, Step, train, training_flags

from fusedformer import Decoder, MarkovModel, TransformerConfig

PRESETS = ("char-decoder", "char-decoder-large")
TARGET = 0.8  # of the bigram loss


@torch.no_grad()
def held_out_loss(model: Decoder, held_out: Tensor) -> float:
    """Mean loss over the held-out text, cut into windows of the model's context, with dropout off."""
    length, was_training = model.config.max_seq_len, model.training
    windows = held_out[: (len(held_out) - 1) // length * length + 1].unfold(0, length + 1, length)
    model.eval()
    loss = sum(model.loss(batch).item() * len(batch) for batch in windows.split(64)) / len(windows)
    model.train(was_training)
    return loss


def describe(steps: Sequence[Step]) -> str:
    """The lowest held-out loss on the way, and the time that training took until then, evaluations aside."""
    lowest, number = min((step.held_out, n) for n, step in enumerate(steps, 1) if step.held_out is not None)
    seconds = sum(step.seconds for step in steps[:number])
    return f"lowest held-out loss {lowest:.4f} nats after {number} steps, {seconds:.1f} s"


def main() -> int:
    parser = training_flags(__doc__, name="train_decoder", steps=1200)
    parser.add_argument("--text", type=Path, help="a text file (UTF-8); without it, the documentation CPython carries")
    parser.add_argument("--preset", default=PRESETS[0], choices=PRESETS, help="shape of the model")
    parser.add_argument("--batch", type=positive, default=12, help="windows of text in a batch")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest")
    parser.add_argument(
        "--evaluate-every", type=positive, help="steps from one held-out loss to the next; else the last's"
    )
    parser.add_argument(
        "--target", type=float, help="held-out loss, in nats, at which to stop; else 0.8 of the bigram's"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    text = args.text.read_text(encoding="utf-8") if args.text else "\n".join(topics.values())
    characters = sorted(set(text))
    code = {character: index for index, character in enumerate(characters)}
    tokens = torch.tensor([code[character] for character in text])
    model = Decoder(TransformerConfig.preset(args.preset, vocab_size=len(characters))).to(args.device)
    length = model.config.max_seq_len
    split = len(tokens) * 9 // 10
    if len(tokens) - split <= length:
        parser.error(f"the text has {len(tokens)} characters, too few: {10 * length + 10} are enough")
    train_tokens, held_out = tokens[:split], tokens[split:]
    floor = MarkovModel(train_tokens, len(characters), order=1, alpha=1).loss(held_out)
    print(f"{len(text):,} characters, {len(characters)} of them different")
    print(f"the floor to beat, the bigram matrix: held-out loss {floor:.4f} nats")

    def next_loss(index: int) -> Tensor:
        starts = torch.randint(split - length, (args.batch, 1))
        return model.loss(train_tokens[starts + torch.arange(length + 1)].to(args.device))

    held_out = held_out.to(args.device)
    target = TARGET * floor if args.target is None else args.target
    evaluation = Evaluation(
        lambda: held_out_loss(model, held_out),
        args.evaluate_every or args.steps,
        -math.inf if args.target is None else target,
    )
    steps = train(model, next_loss, args, learning_rate=args.learning_rate, evaluation=evaluation)
    rate = len(steps) * args.accumulate * args.batch * length / sum(step.seconds for step in steps)
    print(describe(steps))

    prompts = train_tokens[:8].expand(3, -1).to(args.device)
    for sample in model.generate(prompts, length - 8, temperature=0.8, top_k=20).tolist():
        print("sample:", repr("".join(characters[token] for token in sample)))
    loss = steps[-1].held_out
    assert loss is not None  # the last step is always evaluated
    plot_loss(
        [step.loss for step in steps],
        args.output_dir / "loss.png",
        {"bigram matrix, held out": floor, "this model, held out": loss},
    )
    return verdict(f"{rate:,.0f} tokens/s, held-out loss {loss:.4f} nats, at most {target:.4f} wanted", loss <= target)


if __name__ == "__main__":
    sys.exit(main())
