"""A trained network continues the first beats of a chorale: as MIDI, as sound, and as a figure."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxtrain as jt

from .midi import held, write_midi
from .musicxml import LOWEST
from .sound import write_wav

NAMES = "C C# D D# E F F# G G# A A# B".split()


class Continue(jt.Callback):
    """Writes ``continuation.mid``, ``.wav`` and ``.png`` at the end of a run.

    The notes of a beat are independent in the loss, and independent draws would be too many notes or too few. Here a
    beat has as many notes as the music has parts, drawn one after the other by their odds, without replacement.

    Args:
        folder: Folder of the files.
        prompt: Beats ``(T, 88)``, 1 where a note sounds.
        beats: Number of beats to generate.
        parts: Number of notes per beat.
        tempo: Beats per minute.
    """

    def __init__(self, folder: Path, prompt: np.ndarray, beats: int, parts: int, tempo: float = 80):
        self.folder, self.prompt, self.beats, self.parts, self.tempo = folder, prompt, beats, parts, tempo

    def on_fit_end(self, run, status):
        if status == "failed":
            return
        # The input at a beat is the beat before it, at first silence.
        inputs = np.pad(self.prompt, ((1, 0), (0, 0)))[:, None].astype(np.float32)  # (T + 1, 1, 88)
        made = run.generate(inputs, self.beats, sample=partial(draw, parts=self.parts), batch_first=False)[:, 0]
        roll = np.concatenate([self.prompt, made.astype(np.uint8)])
        self.folder.mkdir(parents=True, exist_ok=True)
        write_midi(self.folder / "continuation.mid", roll, self.tempo)
        write_wav(self.folder / "continuation.wav", roll, self.tempo)
        figure_of(roll, len(self.prompt)).savefig(self.folder / "continuation.png", dpi=150)


def draw(logits, key, parts: int):
    """Notes 0.0 or 1.0, ``parts`` of them in each sequence; the largest sums with Gumbel noise are such a draw."""
    _, notes = jax.lax.top_k(logits + jax.random.gumbel(key, logits.shape), parts)  # (B, parts)
    return jax.nn.one_hot(notes, logits.shape[-1], dtype=logits.dtype).sum(-2)


def name_of(note: int) -> str:
    """The name of a note of a roll: C4 has the MIDI number 60."""
    octave, semitone = divmod(LOWEST + note, 12)
    return f"{NAMES[semitone]}{octave - 1}"


def figure_of(roll: np.ndarray, prompt: int):
    """A roll with a bar for each note, whose first ``prompt`` beats have another colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, colour, first, last in (
        ("prompt", "#808080", 0, prompt),
        ("continuation", "#0072b2", prompt, len(roll)),
    ):
        onsets, ends, notes = np.array(held(roll[first:last]), int).reshape(-1, 3).T
        axes.barh(
            notes, ends - onsets, 0.8, first + onsets, color=colour, edgecolor="white", linewidth=0.5, label=label
        )
    used = np.flatnonzero(roll.any(0))
    low, high = (int(used.min()), int(used.max())) if len(used) else (0, len(roll[0]) - 1)
    ticks = [note for note in range(low - 2, high + 3) if name_of(note)[:-1] in ("C", "E", "G")]
    axes.set_yticks(ticks, [name_of(note) for note in ticks])
    axes.axvline(prompt, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="time in beats (quarter notes)", ylabel="note", xlim=(0, len(roll)), ylim=(low - 2, high + 2))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
