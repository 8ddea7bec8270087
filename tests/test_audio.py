"""Sound: wav files, resampling, and Whisper's spectrogram against Hugging Face's."""

import math
import re
import struct
import wave
from pathlib import Path

import pytest
import torch
from files import check_damaged, check_truncated
from torch import Tensor

from fusedformer.transformer import audio
from fusedformer.transformer.audio import RATE, log_mel_spectrogram, mel_filters, read_wav, resample


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate)


def write_wav(path: Path, samples: Tensor, *, rate: int = RATE, size: int = 2, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, size, rate, 0, "NONE", ""))
        code = {1: "B", 2: "h", 4: "i"}[size]
        offset = 128 if size == 1 else 0
        values = (samples * (2 ** (8 * size - 1) - 1)).round().long() + offset
        file.writeframes(struct.pack(f"<{values.numel()}{code}", *values.flatten().tolist()))


@pytest.mark.parametrize(("size", "error"), [(1, 1e-2), (2, 5e-5), (4, 1e-7)])
def test_read_wav(tmp_path: Path, size: int, error: float) -> None:
    left, right = tone(300, RATE, 0.01), tone(500, RATE, 0.01)
    write_wav(tmp_path / "a.wav", torch.stack([left, right], dim=1), size=size, channels=2)
    found = read_wav(tmp_path / "a.wav")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), (left + right) / 2, rtol=0, atol=error)


def test_bad_wav_files(tmp_path: Path) -> None:
    path = tmp_path / "some.wav"
    write_wav(path, tone(300, RATE, 0.02))
    check_truncated(path, lambda: read_wav(path))
    check_damaged(path, lambda: read_wav(path), within=44)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 3, RATE, 0, "NONE", ""))
        file.writeframes(bytes(3))
    with pytest.raises(ValueError, match=r"some.wav has samples of 24 bits: 8, 16 and 32 are read"):
        read_wav(path)
    with pytest.raises(FileNotFoundError):
        read_wav(tmp_path / "none.wav")


@pytest.mark.parametrize("old_rate", [8000, 22050, 24000, 44100, 48000])
def test_resampling_keeps_what_both_rates_have(old_rate: int) -> None:
    for hertz in (0.0, 200.0, 3000.0):
        wanted = tone(hertz, RATE) + 1
        found = resample(tone(hertz, old_rate) + 1, old_rate, RATE)
        assert found.shape == wanted.shape
        inside = slice(100, -100)  # at its ends a tone is not one
        torch.testing.assert_close(found[inside], wanted[inside], rtol=0, atol=2e-4)


def test_resampling_removes_what_would_be_folded() -> None:
    assert resample(tone(9000, 48_000), 48_000, RATE)[100:-100].abs().max() < 1e-3
    samples = tone(500, RATE)
    assert resample(samples, RATE, RATE) is samples


def test_bad_resampling() -> None:
    with pytest.raises(ValueError, match=r"samples must be floating point \(N,\), got torch.int16 of \(3,\)"):
        resample(torch.zeros(3, dtype=torch.int16), 8000, RATE)
    with pytest.raises(ValueError, match=r"rates must be positive integers, got 0 and 16000"):
        resample(torch.zeros(3), 0, RATE)
    with pytest.raises(ValueError, match=r"rates 1000003 and 16000 have no simple ratio: 1000003 to 16000"):
        resample(torch.zeros(3), 1_000_003, RATE)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_spectrogram_is_hugging_faces(n_mels: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    samples = torch.randn(3 * RATE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 0.1
    samples[RATE : 2 * RATE] += tone(700, RATE, 1.0).float()
    theirs = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    expected = theirs(samples.numpy(), sampling_rate=RATE, return_tensors="pt").input_features[0]
    found = log_mel_spectrogram(samples, n_mels)
    assert found.shape == (n_mels, 3000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_mel_filters_are_triangles_of_equal_area() -> None:
    filters = mel_filters(80)
    assert filters.shape == (80, audio.WINDOW // 2 + 1)
    # Above 2 kHz they are wide enough for a sum over frequencies to be close to the area, which is 1.
    areas = filters.sum(dim=1) * RATE / audio.WINDOW
    torch.testing.assert_close(areas[50:], torch.ones(30), rtol=0.05, atol=0)
    peaks = filters.argmax(dim=1)
    assert (peaks.diff() >= 0).all()


def test_silence_and_a_tone() -> None:
    assert log_mel_spectrogram(torch.zeros(0)).unique().tolist() == [pytest.approx((-10 + 4) / 4)]
    spectrogram = log_mel_spectrogram(tone(1000, RATE, 1.0))
    bands = mel_filters(80)[:, 1000 * audio.WINDOW // RATE]
    assert spectrogram[:, 50].argmax() == bands.argmax()
    assert spectrogram[:, 50].max() > spectrogram[:, 200].max()


def test_bad_audio() -> None:
    with pytest.raises(ValueError, match=r"30.1 s of audio: Whisper reads 30 s at most"):
        log_mel_spectrogram(torch.zeros(481_000))
    with pytest.raises(ValueError, match=re.escape("samples must be floating point (N,), got torch.float32 of (2, 3)")):
        log_mel_spectrogram(torch.zeros(2, 3))
