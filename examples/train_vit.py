"""Train a vision transformer to read handwritten digits: 1,797 real images of 8 x 8 pixels, from scikit-learn."""

import math
import sys

import torch
from common import plot_loss, verdict
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import train, training_flags

from fusedformer import TransformerConfig, VisionTransformer

BATCH, LEARNING_RATE, TARGET = 64, 1e-3, 0.96
N_TRAIN = 1437  # the other 360 are held out
PER_EPOCH = math.ceil(N_TRAIN / BATCH)
STEPS = 40 * PER_EPOCH


def batch(index: int, seed: int) -> Tensor:
    """Indices of the images of a batch: each image once per epoch, in an order that follows from seed and epoch."""
    epoch, place = divmod(index, PER_EPOCH)
    generator = torch.Generator().manual_seed(seed * STEPS + epoch)
    return torch.randperm(N_TRAIN, generator=generator).split(BATCH)[place]


def main() -> int:
    args = training_flags(__doc__, name="train_vit", steps=STEPS).parse_args()
    torch.manual_seed(args.seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1)[order]  # (1797, 1, 8, 8), 0 to 16
    images = (pixels / 8 - 1).to(args.device)
    labels = torch.from_numpy(digits.target).long()[order].to(args.device)
    model = VisionTransformer(TransformerConfig.preset("digits-vit")).to(args.device)

    def next_loss(index: int) -> Tensor:
        chosen = batch(index, args.seed)
        return cross_entropy(model(images[chosen]), labels[chosen])

    steps = train(model, next_loss, args, learning_rate=LEARNING_RATE)
    model.eval()
    with torch.no_grad():
        right = model(images[N_TRAIN:]).argmax(dim=1) == labels[N_TRAIN:]
    accuracy = right.float().mean().item()
    plot_loss([step.loss for step in steps], args.output_dir / "loss.png")
    figure = f"{accuracy:.1%} of {len(right)} held-out images right, at least {TARGET:.0%} wanted"
    return verdict(figure, accuracy >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
