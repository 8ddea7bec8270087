"""Train a vision transformer to read handwritten digits: 1,797 real images of 8 x 8 pixels, from scikit-learn."""

import math
import sys
from collections.abc import Iterator

import torch
from common import flags, plot_loss, train, verdict
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusedformer import TransformerConfig, VisionTransformer

BATCH, LEARNING_RATE, TARGET = 64, 1e-3, 0.96
N_TRAIN = 1437  # the other 360 are held out
STEPS = 40 * math.ceil(N_TRAIN / BATCH)  # 40 epochs


def batches() -> Iterator[Tensor]:
    """Indices of training images, each once per epoch, for ever."""
    while True:
        yield from torch.randperm(N_TRAIN).split(BATCH)


def main() -> int:
    args = flags(__doc__, name="train_vit", steps=STEPS).parse_args()
    torch.manual_seed(args.seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1)[order]  # (1797, 1, 8, 8), 0 to 16
    images = (pixels / 8 - 1).to(args.device)
    labels = torch.from_numpy(digits.target).long()[order].to(args.device)
    model = VisionTransformer(TransformerConfig.preset("digits-vit")).to(args.device)
    chosen = batches()

    def next_loss() -> Tensor:
        batch = next(chosen)
        return cross_entropy(model(images[batch]), labels[batch])

    losses = train(model, next_loss, steps=args.steps, learning_rate=LEARNING_RATE)
    model.eval()
    with torch.no_grad():
        right = model(images[N_TRAIN:]).argmax(dim=1) == labels[N_TRAIN:]
    accuracy = right.float().mean().item()
    plot_loss(losses, args.output_dir / "loss.png")
    figure = f"{accuracy:.1%} of {len(right)} held-out images right, at least {TARGET:.0%} wanted"
    return verdict(figure, accuracy >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
