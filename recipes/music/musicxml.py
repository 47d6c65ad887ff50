"""Compressed MusicXML (.mxl) as a piano roll, read with the standard library.

A roll says which of the 88 notes of a piano sound at each quarter note of a score.
"""

import math
import zipfile
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from jaxtrain.errors import ConfigError

LOWEST, NOTES = 21, 88
"""MIDI number of the lowest note of a piano (A0), and its number of notes."""
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

type Note = tuple[Fraction, Fraction, int]
"""Onset and end in quarter notes since the start of the score, and MIDI number."""


def read_score(path: Path) -> ElementTree.Element:
    """The element ``score-partwise`` of a .mxl file, which is a zip archive.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is no archive with a score.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("xml") and not name.startswith("META-INF")]
            return ElementTree.fromstring(archive.read(names[0]))
    except (OSError, zipfile.BadZipFile, IndexError, ElementTree.ParseError) as error:
        raise ConfigError(f"{path} is not compressed MusicXML: {error}; expected a zip archive with a score") from None


def notes_of(score: ElementTree.Element) -> list[Note]:
    """The notes of all parts.

    Repeats are not expanded. A measure is as long as its longest part, so a part with an incomplete measure stays in
    step. Grace notes have no length and are left out. A tied note is several notes, each of which begins at the end of
    the one before.

    Args:
        score: The element ``score-partwise``.
    """
    parts = [part.findall("measure") for part in score.findall("part")]
    states = [{"divisions": Fraction(1), "transpose": 0} for _ in parts]
    notes, begin = [], Fraction(0)
    for number in range(max(map(len, parts))):
        present = [(part[number], state) for part, state in zip(parts, states, strict=True) if number < len(part)]
        begin = max(_read_measure(measure, begin, state, notes) for measure, state in present)
    return notes


def _read_measure(measure: ElementTree.Element, begin: Fraction, state: dict, notes: list[Note]) -> Fraction:
    """Append the notes of a measure of one part, and return its end. ``state`` holds until the next ``attributes``."""
    at = end = onset = begin
    for element in measure:
        length = Fraction(element.findtext("duration", "0")) / state["divisions"]
        if element.tag == "attributes":
            state["divisions"] = Fraction(element.findtext("divisions", str(state["divisions"])))
            if (change := element.find("transpose")) is not None:
                octaves = int(change.findtext("octave-change", "0"))
                state["transpose"] = int(change.findtext("chromatic", "0")) + 12 * octaves
        elif element.tag == "backup":
            at -= length
        elif element.tag == "forward":
            at += length
        elif element.tag == "note" and length:
            if element.find("chord") is None:  # the notes of a chord begin together
                onset, at = at, at + length
            if (pitch := element.find("pitch")) is not None:  # a rest has none
                notes.append((onset, onset + length, _midi(pitch) + state["transpose"]))
        end = max(end, at)
    return end


def _midi(pitch: ElementTree.Element) -> int:
    """The MIDI number of a written pitch; the C of octave 4 is 60."""
    semitone = SEMITONES[pitch.findtext("step", "")] + round(float(pitch.findtext("alter", "0")))
    return semitone + 12 * (int(pitch.findtext("octave", "")) + 1)


def piano_roll(score: ElementTree.Element):
    """The notes that sound at each beat, which is a quarter note.

    Beats are counted from the start of the score, whose pickup is expected to be a whole number of them, to the end of
    its last note.

    Args:
        score: The element ``score-partwise``.

    Returns:
        The roll ``(T, 88)``, uint8: 1 where a note sounds.

    Raises:
        ConfigError: A note is outside of a piano's range.
    """
    import numpy as np

    notes = notes_of(score)
    roll = np.zeros((math.ceil(max((end for _, end, _ in notes), default=0)), NOTES), np.uint8)
    for onset, end, midi in notes:
        if not LOWEST <= midi < LOWEST + NOTES:
            raise ConfigError(f"a note has the MIDI number {midi}; expected {LOWEST} to {LOWEST + NOTES - 1}")
        roll[math.ceil(onset) : math.ceil(end), midi - LOWEST] = 1
    return roll
