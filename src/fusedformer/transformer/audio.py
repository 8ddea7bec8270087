"""From a wav file to what Whisper reads: samples at 16 kHz, then the logarithm of their power by time and pitch.

Dimensions: N samples, M mel bands, F frequencies of the Fourier transform, T frames of 10 ms.
Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv:2212.04356), section
2.2: "80-channel log-magnitude Mel spectrogram representation on 25-millisecond windows with a stride of 10
milliseconds"; the scaling is that of the code they released.
"""

import math
import os
import wave

import torch
import torch.nn.functional as F
from torch import Tensor

RATE = 16_000  # samples per second
WINDOW, STRIDE = 400, 160  # samples: 25 ms, 10 ms
MAX_SECONDS = 30
MAX_SAMPLES = MAX_SECONDS * RATE

# The mel scale of Slaney 1998, "Auditory Toolbox": linear to 1 kHz, logarithmic above.
HZ_PER_MEL, LOG_FROM_HZ, LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27

ZERO_CROSSINGS, ROLLOFF = 32, 0.95  # of the low-pass filter: its length on each side, and where it ends below Nyquist
MAX_WEIGHTS = 2**24  # of that filter, for all places of a new sample between old ones
PCM = {1: (torch.uint8, 128), 2: (torch.int16, 0), 4: (torch.int32, 0)}  # bytes of a sample: its type, and silence


def read_wav(path: str | os.PathLike[str]) -> Tensor:
    """The samples of a wav file, float32 in [-1, 1), (N,), at 16 kHz; channels are averaged.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no wav file of integer samples, or is truncated.
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, size, rate, n_frames = file.getparams()[:4]
            data = file.readframes(n_frames)
    except (wave.Error, EOFError, RuntimeError) as error:  # a RuntimeError for a chunk longer than the file
        raise ValueError(f"{path} is no wav file of integer samples, or is truncated: {error}") from error
    if size not in PCM:
        raise ValueError(f"{path} has samples of {8 * size} bits: 8, 16 and 32 are read")
    if not data or len(data) != n_frames * channels * size:
        raise ValueError(f"{path} is truncated: it has {len(data)} of {n_frames * channels * size} bytes")
    dtype, silence = PCM[size]
    samples = torch.frombuffer(bytearray(data), dtype=dtype).double().sub(silence).div(2 ** (8 * size - 1))
    try:
        return resample(samples.view(-1, channels).mean(dim=1).float(), rate, RATE)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def resample(samples_N: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """The samples at another rate, by band-limited interpolation: what is above half the lower rate is removed first.

    Each new sample is the sum of the old ones around it, weighted by a sinc under a Hann window (Smith, "Digital Audio
    Resampling", https://ccrma.stanford.edu/~jos/resample/).

    Raises:
        ValueError: if the samples are no floating-point vector, or a rate is not a positive integer, or the rates have
            no simple ratio.
    """
    if samples_N.dim() != 1 or not samples_N.is_floating_point():
        raise ValueError(f"samples must be floating point (N,), got {samples_N.dtype} of {tuple(samples_N.shape)}")
    if type(old_rate) is not int or type(new_rate) is not int or min(old_rate, new_rate) < 1:
        raise ValueError(f"rates must be positive integers, got {old_rate!r} and {new_rate!r}")
    if old_rate == new_rate:
        return samples_N
    divisor = math.gcd(old_rate, new_rate)
    up, down = new_rate // divisor, old_rate // divisor  # `up` new samples for each `down` old ones
    cutoff = ROLLOFF * min(1.0, up / down)  # in units of half the old rate
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    if up * (2 * reach + down) > MAX_WEIGHTS:
        raise ValueError(f"rates {old_rate} and {new_rate} have no simple ratio: {down} to {up}")
    # The distance of each new sample of a group to the old ones around the group, in old samples.
    offsets = torch.arange(-reach, reach + down, dtype=torch.float64)
    distances = torch.arange(up, dtype=torch.float64)[:, None] * down / up - offsets
    window = torch.cos(math.pi / 2 * (distances * cutoff / ZERO_CROSSINGS).clamp(-1, 1)) ** 2
    kernels = (cutoff * torch.sinc(distances * cutoff) * window).to(samples_N)
    padded = F.pad(samples_N, (reach, reach + down))
    groups = F.conv1d(padded.view(1, 1, -1), kernels.unsqueeze(1), stride=down)[0]
    return groups.T.flatten()[: math.ceil(len(samples_N) * up / down)]


def log_mel_spectrogram(samples_N: Tensor, n_mels: int = 80) -> Tensor:
    """What Whisper's encoder reads of up to 30 s of audio at 16 kHz: (M, 3000), silence behind the samples' end.

    Base-10 logarithms of the power in each mel band, from at most 8 below the largest, brought near [-1, 1].

    Args:
        samples_N: floating point, (N,), in [-1, 1].
        n_mels: bands; 80 in all Whispers but large-v3, which has 128.

    Raises:
        ValueError: if there are more than 480,000 samples, or they are no floating-point vector.
    """
    if samples_N.dim() != 1 or not samples_N.is_floating_point():
        raise ValueError(f"samples must be floating point (N,), got {samples_N.dtype} of {tuple(samples_N.shape)}")
    if len(samples_N) > MAX_SAMPLES:
        raise ValueError(f"{len(samples_N) / RATE:.1f} s of audio: Whisper reads {MAX_SECONDS} s at most")
    padded_N = F.pad(samples_N.float(), (0, MAX_SAMPLES - len(samples_N)))
    window = torch.hann_window(WINDOW, device=samples_N.device)
    spectrum_FT = torch.stft(padded_N, WINDOW, STRIDE, window=window, return_complex=True)[:, :-1]
    mel_MT = mel_filters(n_mels).to(samples_N.device) @ spectrum_FT.abs().square()
    log_MT = mel_MT.clamp(min=1e-10).log10()
    return (log_MT.maximum(log_MT.max() - 8) + 4) / 4


def mel_filters(n_mels: int) -> Tensor:
    """Triangles over the frequencies of the Fourier transform, (M, F), evenly spaced in mel and of equal area."""
    edges = mel_to_hz(torch.linspace(0, hz_to_mel(RATE / 2), n_mels + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, peak, high = (edges[start : start + n_mels, None] for start in range(3))
    rising, falling = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    triangles = rising.minimum(falling).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def hz_to_mel(hz: float) -> float:
    if hz < LOG_FROM_HZ:
        return hz / HZ_PER_MEL
    return LOG_FROM_HZ / HZ_PER_MEL + math.log(hz / LOG_FROM_HZ) / LOG_STEP


def mel_to_hz(mel: Tensor) -> Tensor:
    log_from = LOG_FROM_HZ / HZ_PER_MEL
    return torch.where(mel < log_from, mel * HZ_PER_MEL, LOG_FROM_HZ * torch.exp(LOG_STEP * (mel - log_from)))
