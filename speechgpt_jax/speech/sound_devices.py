"""Loudspeaker and microphone of this machine, where it has them.

Sound goes through PortAudio (the Python package sounddevice) or to a player such as aplay.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Protocol

import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.speech.audio import SAMPLE_RATE

# Programs that play 16-bit mono samples of SAMPLE_RATE from their standard input.
_RATE = str(SAMPLE_RATE)
PLAYERS = (
    ("aplay", "-q", "-t", "raw", "-f", "S16_LE", "-r", _RATE, "-c", "1"),
    ("paplay", "--raw", "--format=s16le", f"--rate={_RATE}", "--channels=1"),
    ("play", "-q", "-t", "raw", "-e", "signed", "-b", "16", "-r", _RATE, "-c", "1", "-"),
    ("ffplay", "-loglevel", "quiet", "-nodisp", "-autoexit", "-f", "s16le", "-ar", _RATE, "-"),
)


class Player(Protocol):
    """Plays sound while it arrives; a UserError says that the sound device fails."""

    def write(self, wav: np.ndarray) -> None:
        """Plays samples, float32 [samples] at 16 kHz, after those written before."""

    def close(self) -> None:
        """Waits for the end of the sound."""


def open_player() -> Player | None:
    """A player for one sound, or None if this machine can't play any."""
    if device := _sounddevice():
        with contextlib.suppress(device.PortAudioError, ValueError):
            return _DevicePlayer(device)
    for command in PLAYERS:
        if shutil.which(command[0]):
            return _ProgramPlayer(command)
    return None


def record(seconds: float, on_start: Callable[[], object]) -> np.ndarray:
    """Sound from the microphone, float32 [samples] at 16 kHz.

    Args:
      seconds: length of the recording.
      on_start: called when the recording has begun.

    Raises:
      UserError: there is no microphone, or `seconds` is not above 0 and at most 600.
    """
    check_number("seconds", seconds, above=0, at_most=600)
    device = _sounddevice()
    if device is None:
        raise UserError(
            "no microphone: recording needs PortAudio (apt install libportaudio2) and the package"
            " sounddevice; give a file instead."
        )
    try:
        wav = device.rec(round(seconds * SAMPLE_RATE), samplerate=SAMPLE_RATE, channels=1)
        on_start()
        device.wait()
    except (device.PortAudioError, ValueError) as error:
        raise UserError(f"no microphone can be recorded: {error}; give a file instead.") from error
    return wav[:, 0]


def _sounddevice() -> ModuleType | None:
    try:
        import sounddevice
    except (ImportError, OSError):  # OSError: it doesn't find PortAudio.
        return None
    return sounddevice


class _DevicePlayer:
    def __init__(self, device: ModuleType):
        self._device = device
        self._stream = device.OutputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32")
        self._stream.start()

    def write(self, wav: np.ndarray) -> None:  # float32 [samples]
        with self._errors():
            self._stream.write(np.ascontiguousarray(wav, np.float32)[:, None])

    def close(self) -> None:
        with self._errors():
            try:
                self._stream.stop()
            finally:
                self._stream.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._device.PortAudioError as error:
            raise UserError(f"the sound was not played to its end: {error}.") from error


class _ProgramPlayer:
    def __init__(self, command: tuple[str, ...]):
        self._name = command[0]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def write(self, wav: np.ndarray) -> None:  # float32 [samples]
        assert self._process.stdin
        samples = np.rint(np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()
        try:
            self._process.stdin.write(samples)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise UserError(self._problem()) from error

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        if self._process.wait():
            raise UserError(self._problem())

    def _problem(self) -> str:
        return (
            f"the sound was not played to its end: {self._name} failed with exit code"
            f" {self._process.wait()}, perhaps because there is no sound device."
        )
