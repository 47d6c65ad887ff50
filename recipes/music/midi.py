"""A piano roll as a Standard MIDI File."""

from pathlib import Path

from .musicxml import LOWEST

TICKS = 480
"""Ticks per beat."""


def held(roll) -> list[tuple[int, int, int]]:
    """The notes of a roll as (first beat, beat after the last one, index of the note), sorted.

    A note that sounds at several beats in a row is one note, since a roll does not show whether it is repeated.

    Args:
        roll: ``(T, 88)``, 1 where a note sounds.
    """
    import numpy as np

    changes = np.diff(np.pad(np.asarray(roll).T.astype(int), ((0, 0), (1, 1))))  # (88, T + 1): 1 at onsets, -1 at ends
    onsets, ends = np.argwhere(changes == 1).tolist(), np.argwhere(changes == -1).tolist()
    return sorted((onset, end, note) for (note, onset), (_, end) in zip(onsets, ends, strict=True))


def write_midi(path: Path, roll, tempo: float) -> None:
    """Write a file of format 0, with one track and one channel.

    Args:
        path: The file.
        roll: ``(T, 88)``, 1 where a note sounds at a beat, which is a quarter note.
        tempo: Beats per minute.
    """
    events = []  # (beat, 0 for the end of a note and 1 for its onset, MIDI number): a repeated note ends first
    for onset, end, note in held(roll):
        events += [(onset, 1, LOWEST + note), (end, 0, LOWEST + note)]
    track, before = bytearray(b"\x00\xff\x51\x03" + round(60e6 / tempo).to_bytes(3)), 0
    for beat, on, number in sorted(events):
        track += _delta((beat - before) * TICKS) + bytes([0x90 if on else 0x80, number, 64])
        before = beat
    track += _delta((len(roll) - before) * TICKS) + b"\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4) + (0).to_bytes(2) + (1).to_bytes(2) + TICKS.to_bytes(2)
    path.write_bytes(header + b"MTrk" + len(track).to_bytes(4) + track)


def _delta(ticks: int) -> bytes:
    """A number in groups of seven bits; all but the last byte have their highest bit set."""
    groups = [ticks & 0x7F]
    while ticks := ticks >> 7:
        groups.append(ticks & 0x7F | 0x80)
    return bytes(reversed(groups))
