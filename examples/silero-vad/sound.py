"""Sound: read from WAV files, cut into steps, and drawn with what was heard in it."""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

RATE = 16_000
STEP = 512
CONTEXT = 64
Array = NDArray[np.float32]


def read(path: Path) -> Array:
    """Read a recording as steps `[T, 512]` from -1 to 1; the last one is filled up with silence.

    Raises:
        ValueError: It is not a WAV file of 16-bit samples, one channel, 16 kHz.
    """
    try:
        with wave.open(str(path)) as file:
            kind = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a WAV file: {error}") from None
    if kind != (RATE, 1, 2):
        raise ValueError(
            f"{path} has {kind[0]} Hz, {kind[1]} channels and {8 * kind[2]} bits; the model needs 16000 Hz, 1 channel "
            f"and 16 bits: sox {path.name} -r 16000 -c 1 -b 16 new.wav"
        )
    samples = np.frombuffer(data, "<i2")
    return np.pad(samples, (0, -len(samples) % STEP)).reshape(-1, STEP).astype(np.float32) / np.float32(32768)


def draw(recordings: Sequence[tuple[str, Array, Array]], path: Path) -> None:
    """Draw P(speech) over the waveform; of each recording: its name, steps `[T, 512]` and probabilities `[T]`."""
    figure = Figure(figsize=(12, 1.0 + 1.7 * len(recordings)), layout="constrained")
    axes = figure.subplots(len(recordings), squeeze=False)[:, 0]
    for axis, (name, steps, speech) in zip(axes, recordings, strict=True):
        samples = steps.ravel()
        axis.plot(np.arange(len(samples)) / RATE, samples / max(np.abs(samples).max(), 1e-9), color="0.6", lw=0.4)
        axis.set(ylim=(-1.05, 1.05), xlim=(0, len(samples) / RATE), yticks=[])
        axis.set_title(name, fontsize=9, loc="left")
        chance = axis.twinx()
        edges = np.arange(len(speech) + 1) * STEP / RATE
        chance.stairs(speech, edges, color="tab:red", lw=1.2)
        chance.stairs(np.where(speech > 0.5, 1, 0), edges, fill=True, color="tab:red", alpha=0.08)
        chance.set(ylim=(-0.02, 1.05), yticks=[0, 0.5, 1])
        chance.set_ylabel("P(speech)", color="tab:red", fontsize=8)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
