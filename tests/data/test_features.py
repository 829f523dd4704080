"""The audio front end against a slow version of its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qunlearn.data.features import FrontEnd
from qunlearn.errors import ConfigError

SMALL = FrontEnd(window=16, hop=8, fft=32, mels=5, fmin=50.0)


def slow(front: FrontEnd, pcm: list[int]) -> list[list[float]]:
    """steps * ln(1 + energy/floor) of every frame and band, by loops and a plain Fourier sum."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (front.fmin, front.fmax))
    edges = [700 * (10 ** ((low + (high - low) * i / (front.mels + 1)) / 2595) - 1) for i in range(front.mels + 2)]
    out = []
    for start in range(0, len(pcm) - front.window + 1, front.hop):
        frame = [
            pcm[start + n] / 32768 * (0.5 - 0.5 * math.cos(2 * math.pi * n / front.window)) for n in range(front.window)
        ]
        power = []
        for k in range(front.fft // 2 + 1):
            re = sum(v * math.cos(2 * math.pi * k * n / front.fft) for n, v in enumerate(frame))
            im = sum(v * math.sin(2 * math.pi * k * n / front.fft) for n, v in enumerate(frame))
            power.append(re * re + im * im)
        row = []
        for m in range(front.mels):
            energy = 0.0
            for k, p in enumerate(power):
                f = k * front.rate / front.fft
                rise = (f - edges[m]) / (edges[m + 1] - edges[m])
                fall = (edges[m + 2] - f) / (edges[m + 2] - edges[m + 1])
                energy += max(0.0, min(rise, fall)) * p
            row.append(front.steps * math.log(1 + energy / front.floor))
        out.append(row)
    return out


def test_codes_follow_the_formulas() -> None:
    pcm = np.random.default_rng(0).integers(-9000, 9000, (2, 60)).astype(np.int16)
    got = SMALL.apply(pcm)
    assert got.dtype == np.uint8
    assert got.shape == (2, 1, SMALL.frames(60), 5) == (2, 1, 6, 5)
    for clip, row in zip(got, pcm, strict=True):
        want = np.array(slow(SMALL, row.tolist()))
        assert want.max() > 20
        assert np.abs(clip[0] - np.minimum(want, 255)).max() <= 0.5 + 1e-6


def test_silence_is_zero_and_loud_is_clamped() -> None:
    front = FrontEnd()
    assert front.apply(np.zeros((1, 8000), np.int16)).shape == (1, 1, 49, 32)
    assert not front.apply(np.zeros((1, 8000), np.int16)).any()
    tone = (32767 * np.sign(np.sin(2 * np.pi * 440 * np.arange(8000) / 8000))).astype(np.int16)
    assert FrontEnd(floor=1e-9).apply(tone[None]).max() == 255


def test_a_tone_lies_in_its_band() -> None:
    front = FrontEnd()
    centres = (front.filters() @ np.arange(257)) / front.filters().sum(1) * front.rate / front.fft
    tone = (20000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)).astype(np.int16)
    band = int(front.apply(tone[None])[0, 0, 20].argmax())
    assert abs(centres[band] - 1000) < 100


def test_spec_round_trip() -> None:
    assert FrontEnd.parse(SMALL.spec()) == SMALL
    assert FrontEnd().spec() == (
        "logmel:rate=8000,window=320,hop=160,fft=512,mels=32,fmin=20.0,fmax=4000.0,floor=0.0001,steps=16"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "logmel:",
        "mfcc:rate=8000",
        "logmel:rate=8000",
        FrontEnd().spec() + ",rate=8000",
        FrontEnd().spec() + ",gain=2",
        FrontEnd().spec().replace("320", "x"),
        FrontEnd().spec().replace("20.0", "nan"),
        "logmel:" + "a" * 600,
    ],
)
def test_wrong_specs(text: str) -> None:
    with pytest.raises(ConfigError, match="front end"):
        FrontEnd.parse(text)


def test_wrong_parameters_and_clips() -> None:
    with pytest.raises(ConfigError, match=r"fft must be.*rate/2 must hold; floor must be positive"):
        FrontEnd(fft=100, fmax=9000.0, floor=0.0)
    with pytest.raises(ConfigError, match="mels must be a whole number"):
        FrontEnd(mels=True)
    for clip in (np.zeros((1, 8000), np.float32), np.zeros(8000, np.int16), np.zeros((1, 319), np.int16)):
        with pytest.raises(ConfigError, match=r"int16 clips \[N, samples >= 320\]"):
            FrontEnd().apply(clip)  # type: ignore[arg-type]
