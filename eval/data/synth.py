"""Made sounds: tones, sweeps, clicks, noises and calls, each decided by its random generator.

They add to what a student hears during distillation: recordings hold few of them.
Every maker returns float32 [S] at RATE, one to ten seconds long, of any level.
Axes: S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Wave = NDArray[np.float32]
RATE: Final = 32_000  # samples a second of every sound made here


def _seconds(rng: Generator) -> NDArray[np.float64]:
    """Return the times [S] in seconds of a sound of random length."""
    return np.arange(int(RATE * rng.uniform(1.0, 10.0))) / RATE


def _hertz(rng: Generator, low: float = 40.0, high: float = 12_000.0) -> float:
    """Draw a frequency in Hz, uniform in pitch."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def harmonics(rng: Generator) -> Wave:
    """Make a tone of slightly inharmonic partials, steady or with vibrato."""
    t = _seconds(rng)
    f0 = _hertz(rng, 40, 3000)
    vibrato = 1 + rng.uniform(0, 0.03) * np.sin(2 * np.pi * rng.uniform(2, 9) * t)
    phase = 2 * np.pi * np.cumsum(f0 * vibrato) / RATE
    stretch, tilt = rng.uniform(0, 0.002), rng.uniform(0.3, 2.0)
    partials = np.arange(1, min(40, int(15_000 / f0)) + 1)
    wave = np.zeros_like(t)
    for n in partials:
        wave += np.sin(phase * n * (1 + stretch * n)) * n**-tilt * rng.uniform(0.1, 1)
    return wave.astype(np.float32)


def sweep(rng: Generator) -> Wave:
    """Make a tone that glides between two pitches, once or many times."""
    t = _seconds(rng)
    low, high = np.log(_hertz(rng)), np.log(_hertz(rng))
    cycle = (t * rng.uniform(0.1, 6.0)) % 1.0
    shape = cycle if rng.random() < 0.5 else 0.5 - 0.5 * np.cos(2 * np.pi * cycle)
    phase = np.cumsum(np.exp(low + (high - low) * shape)) / RATE
    wave = np.sin(2 * np.pi * phase)
    return (np.sign(wave) if rng.random() < 0.3 else wave).astype(np.float32)


def modulated_tone(rng: Generator) -> Wave:
    """Make a tone modulated in frequency and amplitude, at rates from 0.5 to 800 Hz."""
    t = _seconds(rng)
    carrier, rate = _hertz(rng), _hertz(rng, 1, 800)
    wave = np.sin(2 * np.pi * carrier * t + rng.uniform(0, 8) * np.sin(2 * np.pi * rate * t))
    depth = rng.uniform(0, 1)
    return (wave * (1 - depth + depth * np.sin(2 * np.pi * _hertz(rng, 0.5, 60) * t))).astype(
        np.float32
    )


def coloured_noise(rng: Generator) -> Wave:
    """Make noise whose spectrum follows a power law; half of the time it is gated or swells."""
    t = _seconds(rng)
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    hertz = np.maximum(np.fft.rfftfreq(len(t), 1 / RATE), 20.0)
    wave = np.fft.irfft(spectrum * hertz ** -rng.uniform(-0.5, 1.0), len(t))
    if rng.random() < 0.5:
        gate = np.sin(2 * np.pi * _hertz(rng, 0.3, 20) * t + rng.uniform(0, 6))
        wave = wave * (np.maximum(gate, 0) if rng.random() < 0.5 else gate > rng.uniform(-0.8, 0.8))
    return wave.astype(np.float32)


def white_noise(rng: Generator) -> Wave:
    """Make ten seconds of steady noise; the mixer's filters colour it later."""
    return rng.standard_normal(10 * RATE).astype(np.float32)


def clicks(rng: Generator) -> Wave:
    """Make impulses, regular or at random times, that excite a few resonances."""
    t = _seconds(rng)
    wave = np.zeros_like(t)
    rate = _hertz(rng, 0.5, 60)
    if rng.random() < 0.5:
        wave[:: max(1, int(RATE / rate))] = 1.0
    else:
        wave[rng.integers(0, len(t), max(1, int(rate * len(t) / RATE)))] = 1.0
    ring_t = np.arange(RATE // 4) / RATE
    ring = np.zeros_like(ring_t)
    for _ in range(rng.integers(1, 6)):
        decay = np.exp(-ring_t / rng.uniform(0.001, 0.08))
        ring += decay * np.sin(2 * np.pi * _hertz(rng, 80) * ring_t) * rng.uniform(0.2, 1)
    if rng.random() < 0.4:
        ring += np.exp(-ring_t / rng.uniform(0.001, 0.05)) * rng.standard_normal(len(ring_t))
    size = len(wave) + len(ring)
    filtered = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(ring, size), size)
    return filtered[: len(t)].astype(np.float32)


def chirping(rng: Generator) -> Wave:
    """Make short calls of changing pitch, like those of birds, insects and toys."""
    t = _seconds(rng)
    wave = np.zeros_like(t)
    base, length = _hertz(rng, 300, 9000), rng.uniform(0.03, 0.4)
    begin = 0.0
    bend, tremble = rng.uniform(-0.6, 0.6), rng.uniform(0, 0.2)
    trill = rng.uniform(5, 60)
    while begin + length < t[-1]:
        call = np.arange(int(length * RATE)) / RATE
        pitch = base * 2 ** (bend * call / length + tremble * np.sin(2 * np.pi * trill * call))
        tone = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) * np.sin(np.pi * call / length) ** 2
        start = int(begin * RATE)
        wave[start : start + len(call)] += tone * rng.uniform(0.3, 1)
        begin += length * rng.uniform(1.0, 4.0)
    return wave.astype(np.float32)


MAKERS: Final[tuple[Callable[[Generator], Wave], ...]] = (
    harmonics,
    sweep,
    modulated_tone,
    coloured_noise,
    white_noise,
    clicks,
    chirping,
)


def sounds(count: int, seed: int = 0) -> Iterator[tuple[str, Wave]]:
    """Yield `count` names and sounds [S] at RATE, whose peaks lie between -30 and 0 dB."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        maker = MAKERS[number % len(MAKERS)]
        wave = maker(rng)
        peak = max(float(np.abs(wave).max()), 1e-6)
        name = f"synthetic/{maker.__name__}-{number}"
        yield name, wave * np.float32(10 ** (rng.uniform(-30, 0) / 20) / peak)
