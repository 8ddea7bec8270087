"""What models attend to, as PNG: a sentence to itself, a transcript to its sound, a photo to what it is of."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a display

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Picture
from torch import Tensor

from fusedformer.benchmarks.harness.op import FORWARD
from fusedformer.benchmarks.verify.subjects import Subject
from fusedformer.transformer.audio import RATE, STRIDE
from fusedformer.transformer.images import MEAN, STD, preprocess
from fusedformer.transformer.recording import record_attention

SENTENCE = "The animal did not cross the street because it was too tired"
SENTENCE_LAYER = 4
FRAME_SECONDS = 2 * STRIDE / RATE  # of one position of Whisper's encoder, whose second convolution halves them


@torch.no_grad()
def draw_sentence(subject: Subject, path: Path) -> None:
    """Every head of one layer of an encoder, over the words of a sentence."""
    encoding = subject.details["tokenizer"].encode(SENTENCE)
    device = next(subject.model.parameters()).device
    with record_attention(subject.model, layers=[SENTENCE_LAYER]) as patterns:
        subject.model(torch.tensor([encoding.ids], device=device))
    ((pattern_1HST,),) = patterns.values()
    heads_HST = pattern_1HST[0].cpu()
    columns = 4
    picture = Picture(figsize=(14, 3.6 * -(-len(heads_HST) // columns)), layout="constrained")
    axes = list(picture.subplots(-(-len(heads_HST) // columns), columns, squeeze=False).flat)
    ticks = range(len(encoding.tokens))
    # The first token takes what no word deserves; it is left off the scale, which would show little else.
    largest = heads_HST[:, :, 1:].max().item()
    for head, (panel, weights_ST) in enumerate(zip(axes, heads_HST)):
        image = panel.imshow(weights_ST.numpy(), vmin=0, vmax=largest, cmap="viridis")
        panel.set_title(f"head {head}", fontsize=10)
        panel.set_xticks(ticks, encoding.tokens, rotation=90, fontsize=7)
        panel.set_yticks(ticks, encoding.tokens, fontsize=7)
    picture.colorbar(image, ax=axes, shrink=0.5, extend="max", label="weight of a column's word for a row's")
    picture.suptitle(f"Attention in layer {SENTENCE_LAYER} of MiniLM-L6")
    save(picture, path)


@torch.no_grad()
def draw_alignment(subject: Subject, path: Path) -> None:
    """When each token of a transcript is spoken: cross-attention, averaged over the heads that align the two."""
    details = subject.details
    layers = sorted({layer for layer, _ in details["alignment_heads"]})
    with record_attention(subject.model, layers=layers) as patterns:
        subject.tasks[FORWARD].ours()
    chosen = [
        patterns[f"decoder.blocks.{layer}.cross_attention"][0][0, head] for layer, head in details["alignment_heads"]
    ]
    n_frames = round(details["seconds"] / FRAME_SECONDS)
    # The pattern in the row of a token is that by which the next one is written.
    weights_ST = torch.stack(chosen).mean(dim=0)[details["n_prompt"] - 1 : -1, :n_frames].cpu()
    tokens = details["tokens"]
    picture = Picture(figsize=(13, 0.14 * len(tokens) + 1.5), layout="constrained")
    axes = picture.subplots()
    scaled_ST = weights_ST / weights_ST.amax(dim=1, keepdim=True).clamp(min=1e-9)
    extent = (0, details["seconds"], len(tokens) - 0.5, -0.5)
    image = axes.imshow(scaled_ST.numpy(), aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    axes.set_yticks(range(len(tokens)), tokens, fontsize=6)
    axes.set_xlabel("seconds of sound")
    axes.set_title(f"Where Whisper listens as it writes: the mean of {len(chosen)} heads of cross-attention")
    picture.colorbar(image, label="weight, of each token's largest")
    save(picture, path)


@torch.no_grad()
def draw_photos(subject: Subject, path: Path) -> None:
    """The patches that the class token reads in the last layer of a vision transformer, over the photos."""
    config = subject.model.config
    with record_attention(subject.model, layers=[config.n_layers - 1]) as patterns:
        subject.tasks[FORWARD].ours()
    ((pattern_BHST,),) = patterns.values()
    weights_BN = pattern_BHST[:, :, 0, 1 + config.n_registers :].mean(dim=1).cpu()
    photos = subject.details["photos"]
    picture = Picture(figsize=(3.4 * len(photos), 7), layout="constrained")
    axes = picture.subplots(2, len(photos), squeeze=False)
    for (name, photo), weights_N, above, below in zip(photos.items(), weights_BN, *axes):
        pixels = displayed(preprocess(photo)[0])
        heat = F.interpolate(as_square(weights_N), pixels.shape[:2], mode="bicubic")[0, 0].clamp(min=0)
        above.imshow(pixels.numpy())
        share = (heat / heat.max()).numpy()
        below.imshow(pixels.numpy(), alpha=0.5)
        below.imshow(share, cmap="inferno", alpha=0.2 + 0.7 * share)
        above.set_title(name)
        for panel in (above, below):
            panel.set_axis_off()
    picture.suptitle(
        f"What the class token of DINOv2 ViT-S/14 attends to in layer {config.n_layers - 1}, mean of heads"
    )
    save(picture, path)


def as_square(weights_N: Tensor) -> Tensor:
    """Weights of the patches of a square image as an image of one channel."""
    side = round(len(weights_N) ** 0.5)
    return weights_N.view(1, 1, side, side)


def displayed(image_3HW: Tensor) -> Tensor:
    """The picture (height, width, 3), in [0, 1], of a normalised image."""
    mean, std = (image_3HW.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (image_3HW * std + mean).clamp(0, 1).permute(1, 2, 0)


def save(picture: Picture, path: Path) -> None:
    picture.savefig(path, dpi=110)
    plt.close(picture)


PICTURES = {
    "minilm": ("attention-sentence.png", draw_sentence),
    "whisper": ("attention-transcript.png", draw_alignment),
    "dinov2": ("attention-photos.png", draw_photos),
}
