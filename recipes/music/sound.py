"""A piano roll as sound: harmonics with a decay, in a WAV file."""

import wave
from pathlib import Path

from .midi import held
from .musicxml import LOWEST

RATE = 22050
"""Samples per second."""
HARMONICS, ATTACK, RELEASE, DECAY = 8, 0.02, 0.25, 1.5
"""Sine waves per note; rise, release and decay time of a note, in seconds."""


def sound_of(roll, tempo: float):
    """The samples of a roll, between -1 and 1, float.

    Args:
        roll: ``(T, 88)``, 1 where a note sounds at a beat.
        tempo: Beats per minute.
    """
    import numpy as np

    beat = 60 / tempo
    sound = np.zeros(round((len(roll) * beat + RELEASE) * RATE))
    for onset, end, note in held(roll):
        start, length = round(onset * beat * RATE), (end - onset) * beat
        time = np.arange(min(round((length + RELEASE) * RATE), len(sound) - start)) / RATE
        frequency = 440 * 2 ** ((LOWEST + note - 69) / 12)  # 69 is the A of 440 Hz
        numbers = np.arange(1, 1 + min(HARMONICS, int(RATE / 2 / frequency)))[:, None]
        tone = (np.sin(2 * np.pi * frequency * numbers * time) / numbers**1.5).sum(0)
        envelope = np.minimum(time / ATTACK, 1) * np.exp(-time / DECAY)
        sound[start : start + len(time)] += tone * envelope * np.clip((length + RELEASE - time) / RELEASE, 0, 1)
    return 0.9 * sound / max(np.abs(sound).max(), 1e-9)


def write_wav(path: Path, roll, tempo: float) -> None:
    """Write a mono file of 16 bits per sample.

    Args:
        path: The file.
        roll: ``(T, 88)``, 1 where a note sounds at a beat.
        tempo: Beats per minute.
    """
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((sound_of(roll, tempo) * 32767).astype("<i2").tobytes())
