"""Scores in compressed MusicXML, as music21 ships them."""

import zipfile

import numpy as np

STEPS = "C C# D D# E F F# G G# A A# B".split()
HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<score-partwise version="2.0">'


def pitch(midi):
    """The element of a note by its MIDI number."""
    name = STEPS[midi % 12]
    alter = "<alter>1</alter>" if "#" in name else ""
    return f"<pitch><step>{name[0]}</step>{alter}<octave>{midi // 12 - 1}</octave></pitch>"


def note(midi, duration, inside=""):
    """A note, or a rest for None, of ``duration`` divisions; ``inside``: further elements, such as ``<chord/>``."""
    what = "<rest/>" if midi is None else pitch(midi)
    return f"<note>{inside}{what}<duration>{duration}</duration></note>"


def write_score(path, parts):
    """Write a file whose parts are lists of measures, each the text of its elements."""
    body = "".join(
        f'<part id="P{i}">' + "".join(f"<measure>{measure}</measure>" for measure in part) + "</part>"
        for i, part in enumerate(parts)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr(f"{path.stem}.xml", f"{HEAD}{body}</score-partwise>")


def write_chorales(folder, count=15):
    """Pieces of four parts and 8 to 20 quarter notes; the parts move in steps of a whole tone around a chord."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        bars = int(rng.integers(2, 6))
        parts = []
        for middle in (72, 67, 60, 48):
            notes = middle + 2 * rng.integers(-2, 3, (bars, 4))
            measures = ["".join(note(int(midi), 1) for midi in bar) for bar in notes]
            parts.append(["<attributes><divisions>1</divisions></attributes>" + measures[0], *measures[1:]])
        write_score(folder / f"piece{i:02d}.mxl", parts)
