"""The audio front end: 16-bit speech to quantized log-mel spectrograms, in numpy, with every parameter on record.

The formulas (our own choice of constants; the mel scale is the HTK one)::

    frame t        s_t[n] = pcm[t*hop + n] / 32768 * (0.5 - 0.5*cos(2*pi*n/window)),  n = 0 .. window-1
    power          P_t[k] = |FFT(s_t, fft)[k]|^2,                                     k = 0 .. fft/2
    mel scale      mel(f) = 2595*log10(1 + f/700); mels+2 edges equally spaced in mel from fmin to fmax
    filters        triangles that rise from edge m to 1 at edge m+1 and fall to 0 at edge m+2, sampled at k*rate/fft
    energy         E_t[m] = sum_k filter_m[k] * P_t[k]
    code           min(255, rint(steps * ln(1 + E_t[m]/floor)))                       uint8, silence is 0

There is no padding and no pre-emphasis: ``frames = 1 + (samples - window) // hop``. With the defaults one second at
8 kHz gives 49 frames of 32 bands. ``FrontEnd.spec()`` is a short string that holds all parameters; it travels in
``Preprocess.front_end`` so that a device can recompute the same features.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError

_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Parameters of the log-mel front end; the formulas are in the module's docstring."""

    rate: int = 8000
    """Sampling rate, Hz."""
    window: int = 320
    """Length of a frame, samples (40 ms at 8 kHz)."""
    hop: int = 160
    """Step between frames, samples (20 ms at 8 kHz)."""
    fft: int = 512
    """Length of the Fourier transform, samples; frames are padded with zeros at the end."""
    mels: int = 32
    """Number of mel bands."""
    fmin: float = 20.0
    """Lower edge of the first band, Hz."""
    fmax: float = 4000.0
    """Upper edge of the last band, Hz."""
    floor: float = 1e-4
    """Energy below which the logarithm flattens (units of the squared spectrum of samples in -1..1)."""
    steps: int = 16
    """Codes per natural-logarithm unit (16: one code is 0.27 dB, the range is 69 dB)."""

    def __post_init__(self) -> None:
        bad = []
        for name in ("rate", "window", "hop", "fft", "mels", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
                bad.append(f"{name} must be a whole number in 1..1000000")
        for name in ("fmin", "fmax", "floor"):
            if not isinstance(getattr(self, name), int | float) or not math.isfinite(getattr(self, name)):
                bad.append(f"{name} must be a finite number")
        if not bad:
            if self.fft < self.window:
                bad.append("fft must be at least window")
            if not 0 <= self.fmin < self.fmax <= self.rate / 2:
                bad.append("0 <= fmin < fmax <= rate/2 must hold")
            if self.floor <= 0:
                bad.append("floor must be positive")
        if bad:
            raise ConfigError(f"front end: {'; '.join(bad)}.", remedy="Correct the front end's parameters.")

    def spec(self) -> str:
        """All parameters as ``logmel:rate=8000,window=320,...``, in the order of the fields."""
        return "logmel:" + ",".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self))

    @classmethod
    def parse(cls, text: str) -> FrontEnd:
        """The inverse of :meth:`spec`; anything else is a ConfigError."""
        kind, _, body = text.partition(":")
        kinds = {f.name: float if f.name in ("fmin", "fmax", "floor") else int for f in dataclasses.fields(cls)}
        values: dict[str, float | int] = {}
        try:
            if kind != "logmel" or len(text) > 500:
                raise ValueError(kind[:40])
            for item in body.split(","):
                name, _, number = item.partition("=")
                if name in values:
                    raise ValueError(name)
                values[name] = kinds[name](number)
            if set(values) != set(kinds):
                raise ValueError("missing " + ", ".join(sorted(set(kinds) - set(values))))
        except (ValueError, KeyError) as err:
            raise ConfigError(
                f"{text[:80]!r} is no front end: {err}.", remedy="It reads like 'logmel:rate=8000,window=320,...'."
            ) from err
        return cls(**values)  # type: ignore[arg-type]

    def frames(self, samples: int) -> int:
        """Number of frames in a clip of ``samples`` samples."""
        return 1 + (samples - self.window) // self.hop if samples >= self.window else 0

    def filters(self) -> NDArray[np.float64]:
        """The triangular mel filters, float64 [mels, fft//2 + 1]."""
        low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (self.fmin, self.fmax))
        edges = 700.0 * (10.0 ** (np.linspace(low, high, self.mels + 2) / 2595.0) - 1.0)
        hertz = np.arange(self.fft // 2 + 1) * (self.rate / self.fft)
        rise = (hertz[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        fall = (edges[2:, None] - hertz[None, :]) / (edges[2:] - edges[1:-1])[:, None]
        out: NDArray[np.float64] = np.maximum(0.0, np.minimum(rise, fall))
        return out

    def apply(self, pcm: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Features of clips: int16 [N, samples] to uint8 [N, 1, frames, mels]; a clip too short is a ConfigError."""
        if pcm.ndim != 2 or pcm.dtype != np.int16 or pcm.shape[1] < self.window:
            raise ConfigError(
                f"the front end needs int16 clips [N, samples >= {self.window}], got {pcm.dtype} {list(pcm.shape)}.",
                remedy="Convert the audio to 16-bit mono and pad it with zeros.",
            )
        ramp = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / self.window)
        filters = self.filters().T
        out = np.empty((len(pcm), 1, self.frames(pcm.shape[1]), self.mels), np.uint8)
        for start in range(0, len(pcm), _CHUNK):
            part = pcm[start : start + _CHUNK]
            framed = np.lib.stride_tricks.sliding_window_view(part, self.window, axis=1)[:, :: self.hop]
            spectrum = np.fft.rfft(framed / 32768.0 * ramp, self.fft)
            energy = (spectrum.real**2 + spectrum.imag**2) @ filters
            codes = np.rint(self.steps * np.log1p(energy / self.floor))
            out[start : start + _CHUNK, 0] = np.minimum(codes, 255.0).astype(np.uint8)
        return out
