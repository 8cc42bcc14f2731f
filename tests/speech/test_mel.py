"""Spectrograms against torch and librosa, which only these tests import: that takes seconds."""

import numpy as np
import pytest

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import mel


def sound(batch: int = 2, samples: int = 5120) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, samples), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("n_fft", "hop"), [(16, 4), (320, 80), (1024, 256)])
@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
def test_stft_is_torch_stft(n_fft, hop, pad_mode):
    import torch

    wav = sound()
    real, imag = mel.stft(wav, n_fft, hop, pad_mode)
    window = torch.hann_window(n_fft)
    theirs = torch.stft(
        torch.from_numpy(wav), n_fft, hop, window=window, pad_mode=pad_mode, return_complex=True
    ).mT.numpy()
    np.testing.assert_allclose(real, theirs.real, atol=2e-3)
    np.testing.assert_allclose(imag, theirs.imag, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("n_fft", "hop"), [(16, 4), (64, 16), (320, 80)])
def test_istft_is_torch_istft(n_fft, hop):
    """Also of spectra that are not the STFT of any sound."""
    import torch

    rng = np.random.default_rng(0)
    real, imag = rng.standard_normal((2, 2, 33, n_fft // 2 + 1), np.float32)
    spectrum = torch.complex(torch.from_numpy(real), torch.from_numpy(imag)).mT
    # The first and last bins of a sound are real; torch ignores their imaginary parts.
    theirs = torch.istft(spectrum, n_fft, hop, window=torch.hann_window(n_fft)).numpy()
    ours = np.asarray(mel.istft(real, imag, n_fft, hop))
    assert ours.shape == (2, 32 * hop)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
def test_istft_of_stft_is_the_sound():
    wav = sound()
    np.testing.assert_allclose(mel.istft(*mel.stft(wav, 320, 80), 320, 80), wav, atol=1e-4)


@pytest.mark.slow
def test_istft_ends_where_the_mask_does():
    wav = sound(1)
    real, imag = mel.stft(wav, 64, 16)
    short = mel.istft(real[:, :101], imag[:, :101], 64, 16)
    mask = (np.arange(real.shape[1]) < 101).astype(np.float32)[None]
    masked = mel.istft(real, imag, 64, 16, mask)
    np.testing.assert_allclose(masked[:, : short.shape[1]], short, atol=1e-5)


def test_mel_filterbank_is_librosas():
    import librosa

    theirs = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    np.testing.assert_allclose(
        mel.mel_filterbank(16000, 1024, 80, 0.0, 8000.0), theirs.T, atol=1e-7
    )


@pytest.mark.slow
def test_log_mel():
    import librosa
    import torch

    wav = sound()
    power = torch.stft(
        torch.from_numpy(wav[0]), 1024, 256, window=torch.hann_window(1024), return_complex=True
    ).numpy()
    filters = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmax=8000)
    expected = np.log(np.maximum(filters @ np.abs(power), 1e-5)).T
    np.testing.assert_allclose(
        mel.log_mel(wav, 16000, 1024, 256, 80, 8000.0)[0], expected, atol=1e-3
    )
    assert np.isfinite(mel.log_mel(0 * wav, 16000, 1024, 256, 80, 8000.0)).all()


def test_sizes_that_are_no_multiple_of_the_hop_are_refused():
    with pytest.raises(UserError, match="multiple of the hop"):
        mel.stft(sound(), 64, 24)
    with pytest.raises(UserError, match="pad or cut"):
        mel.stft(sound(samples=5121), 64, 16)
