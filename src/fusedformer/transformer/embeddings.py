"""How tokens and sound become the vectors that the blocks read.

Dimensions: B batch, S sequence, V vocabulary, E d_model, C channels, F frames of a spectrogram.
"""

from torch import Tensor, nn

from fusedformer.kernels.gelu import gelu
from fusedformer.transformer.checks import check_input_dtype, check_tensor, check_tokens
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.positions import audio_positions


class TokenEmbedding(nn.Embedding):
    """A table with one vector per token of the vocabulary: the same as one-hot vectors (B, S, V) times the table."""

    def forward(self, tokens_BS: Tensor) -> Tensor:
        check_tokens("tokens", tokens_BS, self.num_embeddings, self.weight.device)
        return super().forward(tokens_BS)


class AudioEmbedding(nn.Module):
    """Whisper's front end: two convolutions over a log-mel spectrogram, the second of stride 2, and fixed positions.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv:2212.04356),
    section 2.2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.max_source_len = config.max_source_len
        self.conv1 = nn.Conv1d(config.n_mels, config.d_model, kernel_size=3, padding=1, bias=config.bias)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1, bias=config.bias)

    def forward(self, mels_BCF: Tensor) -> Tensor:
        """(B, n_mels, F) -> (B, (F + 1) // 2, E).

        Raises:
            ValueError: the spectrogram has another shape, device or dtype than the model, or more than 2 max_source_len
                frames.
        """
        self.check(mels_BCF)
        x_BES = gelu(self.conv2(gelu(self.conv1(mels_BCF))))
        x_BSE = x_BES.transpose(1, 2)
        return x_BSE + audio_positions(x_BSE.shape[1], x_BSE)

    def check(self, mels_BCF: Tensor) -> None:
        weight = self.conv1.weight
        check_tensor("source", mels_BCF, weight.device)
        shape, longest = tuple(mels_BCF.shape), 2 * self.max_source_len
        if len(shape) != 3 or shape[1] != weight.shape[1] or not 0 < shape[2] <= longest:
            raise ValueError(f"source must be of shape (B, {weight.shape[1]}, 1 to {longest} frames), got {shape}")
        check_input_dtype("source", mels_BCF, weight)
