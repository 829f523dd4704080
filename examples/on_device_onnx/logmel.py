"""The log-mel front end on the device, in numpy: from a WAV file to the array that the network's preprocessing takes.

All parameters come from the model's metadata (``front_end`` in ``qunlearn.preprocess``); formulas: docs/data.md.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SECOND = 1.0
"""Length of a clip, seconds: shorter recordings are padded with silence, longer ones are cut."""


def parameters(record: str) -> Mapping[str, float]:
    """The numbers of ``logmel:rate=8000,window=320,...``; ValueError for another front end."""
    kind, _, body = record.partition(":")
    if kind != "logmel":
        raise ValueError(f"the model has no log-mel front end ({record[:40]}): give features (.npz), not sound")
    values = {name: float(number) for name, _, number in (item.partition("=") for item in body.split(","))}
    if set(values) != {"rate", "window", "hop", "fft", "mels", "fmin", "fmax", "floor", "steps"}:
        raise ValueError(f"the front end {record[:80]} has other parameters")
    return values


def read_wav(path: str | Path, rate: int) -> np.ndarray:
    """Samples of one clip, int16 [rate]; ValueError unless the file is 16-bit mono at ``rate``."""
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            data = file.readframes(round(rate * SECOND))
    except (wave.Error, EOFError) as err:
        raise ValueError(f"{path} is no WAV file: {err}") from err
    if found != (1, 2, rate):
        raise ValueError(f"{path} has {found[0]} channels of {8 * found[1]} bit at {found[2]} Hz, not 1, 16 and {rate}")
    pcm = np.frombuffer(data, dtype="<i2")
    return np.pad(pcm, (0, round(rate * SECOND) - len(pcm))).astype(np.int16)


def features(pcm: np.ndarray, p: Mapping[str, float]) -> np.ndarray:
    """uint8 [1, 1, frames, mels] of int16 samples: windowed power spectrum, mel bands, logarithm, 8-bit codes."""
    window, hop, fft, mels = (int(p[k]) for k in ("window", "hop", "fft", "mels"))
    ramp = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = np.lib.stride_tricks.sliding_window_view(pcm, window)[::hop] / 32768.0
    power = np.abs(np.fft.rfft(frames * ramp, fft)) ** 2
    low, high = (2595 * np.log10(1 + p[k] / 700) for k in ("fmin", "fmax"))
    edge = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    hertz = np.arange(fft // 2 + 1)[:, None] * p["rate"] / fft
    rise, fall = (hertz - edge[:-2]) / (edge[1:-1] - edge[:-2]), (edge[2:] - hertz) / (edge[2:] - edge[1:-1])
    energy = power @ np.clip(np.minimum(rise, fall), 0, None)
    return np.minimum(255, np.rint(p["steps"] * np.log1p(energy / p["floor"]))).astype(np.uint8)[None, None]
