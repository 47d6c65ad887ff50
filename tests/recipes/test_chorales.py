"""Chorales: piano rolls and the loss by hand, the files of a continuation, and the scores of music21."""

import dataclasses
import math
import os
import wave
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.errors import ConfigError
from jaxtrain.utils import extras
from tests.kit.scores import note, write_chorales, write_score

RECIPE = load_recipe(Path(__file__).parents[2] / "recipes" / "chorales.py")  # its folder is then on the path
from music.midi import held, write_midi  # noqa: E402
from music.musicxml import piano_roll, read_score  # noqa: E402
from music.sound import RATE, sound_of, write_wav  # noqa: E402

DIVISIONS = "<attributes><divisions>{}</divisions></attributes>"


def roll_of(path, *parts):
    write_score(path, parts)
    return piano_roll(read_score(path))


def by_hand(*beats):
    """A roll whose beats are given as MIDI numbers."""
    roll = np.zeros((len(beats), 88), np.uint8)
    for beat, numbers in zip(roll, beats, strict=True):
        beat[[number - 21 for number in numbers]] = 1
    return roll


# ------------------------------------------------------------------------------------------------------ scores


def test_a_score_is_read_as_by_hand(tmp_path):
    soprano = [  # a pickup, a tie over a bar, a note off the beat, and divisions that change
        DIVISIONS.format(2) + note(72, 2),
        note(74, 4, "<tie type='start'/>") + note(76, 1) + note(77, 3),
        DIVISIONS.format(4) + note(77, 4, "<tie type='stop'/>") + note(None, 4) + note(72, 8),
    ]
    alto = [  # a second voice after a backup, which begins with a forward; a chord
        DIVISIONS.format(1) + note(67, 1),
        note(65, 4) + "<backup><duration>4</duration></backup><forward><duration>2</duration></forward>" + note(62, 2),
        note(60, 2) + note(64, 2, "<chord/>") + note(59, 2),
    ]
    bass = [  # a grace note, and a part that is written an octave and a tone too high
        DIVISIONS.format(1)
        + "<attributes><transpose><chromatic>-2</chromatic><octave-change>-1</octave-change></transpose></attributes>"
        + note(62, 1),
        "<note><grace/><pitch><step>C</step><octave>4</octave></pitch></note>" + note(63, 4),
        "<forward><duration>1</duration></forward>" + note(64, 3),
    ]
    truth = by_hand(
        (72, 67, 48),
        (74, 65, 49), (74, 65, 49), (76, 65, 62, 49), (77, 65, 62, 49),
        (77, 60, 64), (60, 64, 50), (72, 59, 50), (72, 59, 50),
    )  # fmt: skip
    np.testing.assert_array_equal(roll_of(tmp_path / "piece.mxl", soprano, alto, bass), truth)


def test_an_incomplete_measure_keeps_the_parts_in_step(tmp_path):
    short = [DIVISIONS.format(1) + note(60, 1), note(62, 2)]
    full = [DIVISIONS.format(1) + note(48, 2), note(50, 2) + note(None, 1)]
    truth = by_hand((60, 48), (48,), (62, 50), (62, 50))
    np.testing.assert_array_equal(roll_of(tmp_path / "piece.mxl", short, full), truth)  # ends with the last note


def test_what_is_no_score_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "broken.mxl"
    broken.write_text("not a zip archive")
    with pytest.raises(ConfigError, match=r"broken.mxl is not compressed MusicXML: .*; expected a zip archive"):
        RECIPE.load(tmp_path)
    broken.unlink()
    with pytest.raises(ConfigError, match="has 0 .mxl files with 4 parts; expected 5 or more"):
        RECIPE.load(tmp_path)
    with pytest.raises(ConfigError, match="a note has the MIDI number 109; expected 21 to 108"):
        roll_of(tmp_path / "high.mxl", [DIVISIONS.format(1) + note(109, 1)])
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'package music21 is not installed: pip install "jaxtrain\[music21\]", or'):
        RECIPE.make(RECIPE.Config())


def test_pieces_of_four_parts_are_split_and_copies_left_out(tmp_path):
    write_chorales(tmp_path / "pieces", 10)
    before = RECIPE.load(tmp_path / "pieces")
    tones = [
        [DIVISIONS.format(1) + "".join(note(midi, 1) for midi in part)] for part in ((60, 64), (55,), (52,), (40,))
    ]
    higher = [[DIVISIONS.format(1) + "".join(note(midi + 3, 1) for midi in p)] for p in ((60, 64), (55,), (52,), (40,))]
    write_score(tmp_path / "pieces" / "q1.mxl", tones)
    write_score(tmp_path / "pieces" / "q2.mxl", higher)
    write_score(tmp_path / "pieces" / "q3.mxl", tones[:3])
    rolls = RECIPE.load(tmp_path / "pieces")
    assert len(before) == 10 and len(rolls) == 11
    np.testing.assert_array_equal(rolls[-1], by_hand((60, 55, 52, 40), (64,)))
    order = {id(roll): i for i, roll in enumerate(rolls)}
    parts = [[order[id(roll)] for roll in part] for part in RECIPE.split(rolls)]
    assert parts == [[0, 1, 2, 5, 6, 7, 10], [3, 8], [4, 9]]


# ------------------------------------------------------------------------------------------------------ the loss


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pieces"
    write_chorales(folder)
    return RECIPE.Config(
        data=str(folder), hidden=6, width=5, mlp=0, batch_size=4, progress=False, devices=1, validate_every=None
    )


@pytest.mark.full
def test_nats_per_beat_by_hand(small):
    """The logits of ``predict`` and the rolls give the loss of a validation, and silence is the first input."""
    fit, module, data = RECIPE.make(dataclasses.replace(small, max_steps=2))
    metrics = fit.run(module, data).metrics
    _, val, _ = RECIPE.split(RECIPE.load(Path(small.data)))
    loss, beats = 0.0, 0
    for logits, roll in zip(fit.predict(module, data.val_data()), val, strict=True):
        p = 1 / (1 + np.exp(-logits.astype(float)))
        loss -= np.log(np.where(roll == 1, p, 1 - p)).sum()
        beats += len(roll)
    assert metrics["val/loss"] == pytest.approx(loss / beats, rel=1e-5)
    inputs = np.concatenate([np.zeros((1, 88)), val[0][:-1]]).astype(np.float32)
    shown = fit.predict(module, [inputs[:, None]], batch_first=False)[:, 0]
    np.testing.assert_allclose(fit.predict(module, data.val_data())[0], shown, atol=1e-5)


def test_the_readout_begins_with_the_frequencies_of_the_notes(small):
    _, module, _ = RECIPE.make(small)
    train, _, _ = RECIPE.split(RECIPE.load(Path(small.data)))
    beats = np.concatenate(train)
    bias = np.asarray(module.build().readout.weight.value["bias"], float)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), (beats.sum(0) + 1) / (len(beats) + 2), rtol=1e-5)


def test_training_chorales_are_transposed_and_lose_notes(small):
    """Inputs and targets move together, by every interval of the range; validation chorales stay as they are."""
    import jax

    train, val, _ = RECIPE.split(RECIPE.load(Path(small.data)))
    _, _, data = RECIPE.make(dataclasses.replace(small, shift=2, drop=0.5))
    encoder, seen, kept = data.train_data().encoder, set(), []
    for i in range(60):
        x, y = map(np.asarray, encoder(train[0], jax.random.key(i)))
        (shift,) = [s for s in range(-2, 3) if (np.roll(train[0], s, 1) == y).all()]
        before = np.concatenate([np.zeros((1, 88)), y[:-1]])
        assert (x <= before).all()
        seen.add(shift)
        kept.append(x.sum() / before.sum())
    assert seen == {-2, -1, 0, 1, 2} and np.mean(kept) == pytest.approx(0.5, abs=0.05)
    x, y = map(np.asarray, data.val_data().encoder(val[0], jax.random.key(0)))
    np.testing.assert_array_equal(y, val[0])
    np.testing.assert_array_equal(x[1:], y[:-1])


# ------------------------------------------------------------------------------------------------------ the files


def midi_events(path):
    """The notes of a file, (ticks, on, number), by a reader of its own."""
    data = path.read_bytes()
    assert data[:4] == b"MThd" and data[8:14] == b"\0\0\0\1\1\xe0" and data[14:18] == b"MTrk"  # format 0, 480 ticks
    assert len(data) == 22 + int.from_bytes(data[18:22])
    at, time, events = 22, 0, []
    while at < len(data):
        delta = 0
        while True:
            delta, more, at = delta * 128 + data[at] % 128, data[at] >= 128, at + 1
            if not more:
                break
        time += delta
        if data[at] == 0xFF:
            events.append((time, "meta", data[at + 1], data[at + 3 : at + 3 + data[at + 2]]))
            at += 3 + data[at + 2]
        else:
            events.append((time, data[at] == 0x90, data[at + 1]))
            at += 3
    return events


def roll_from(events):
    """The roll of a file's notes, each of which ends before it sounds again."""
    found, sounding = np.zeros((events[-1][0] // 480, 88), np.uint8), {}
    for time, on, number in events[1:-1]:
        if on:
            assert number not in sounding
            sounding[number] = time // 480
        else:
            found[sounding.pop(number) : time // 480, number - 21] = 1
    assert not sounding
    return found


ROLL = by_hand((60, 64), (60,), (), (60,), (62, 65))


def test_a_midi_file_has_the_notes_of_the_roll(tmp_path):
    assert held(ROLL) == [(0, 1, 43), (0, 2, 39), (3, 4, 39), (4, 5, 41), (4, 5, 44)]
    write_midi(tmp_path / "x.mid", ROLL, tempo=100)
    events = midi_events(tmp_path / "x.mid")
    assert events[0] == (0, "meta", 0x51, (600_000).to_bytes(3)) and events[-1] == (5 * 480, "meta", 0x2F, b"")
    np.testing.assert_array_equal(roll_from(events), ROLL)


def test_sound_has_the_frequencies_of_its_notes(tmp_path):
    roll = by_hand((57,), (57,), (69, 76))
    write_wav(tmp_path / "x.wav", roll, tempo=60)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(samples, sound_of(roll, 60), atol=1e-4)
    assert np.abs(samples).max() == pytest.approx(0.9, abs=1e-3) and len(samples) == round(3.25 * RATE)
    spectrum = np.abs(np.fft.rfft(samples[: 2 * RATE]))  # bins of half a hertz: the A of 220 Hz and its octave
    assert spectrum.argmax() == 440 and spectrum[880] > 20 * spectrum[500]
    last = np.abs(np.fft.rfft(samples[-RATE:]))
    assert last[440] > 20 * last[300] and last[659] > 20 * last[300]  # A4, and E5 of 659.3 Hz


@pytest.mark.full
def test_a_run_ends_with_a_continuation(small, tmp_path):
    config = dataclasses.replace(small, max_steps=2, sample=str(tmp_path / "out"), run_dir=str(tmp_path / "run"))
    fit, module, data = RECIPE.make(config)
    fit.run(module, data)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"continuation.{x}" for x in ("mid", "wav", "png")}
    _, val, _ = RECIPE.split(RECIPE.load(Path(small.data)))
    prompt = val[0][: RECIPE.PROMPT]
    roll = roll_from(midi_events(tmp_path / "out" / "continuation.mid"))
    np.testing.assert_array_equal(roll[: len(prompt)], prompt)
    assert len(roll) == len(prompt) + RECIPE.CONTINUED and (roll[len(prompt) :].sum(1) == 4).all()
    assert len(np.unique(roll[len(prompt) :], axis=0)) > 10, "beats differ"
    again = tmp_path / "again"
    fit, module, data = RECIPE.make(dataclasses.replace(config, sample=str(again)))
    fit.run(module, data, resume="last")  # the run is complete, and only writes the files
    for name in ("continuation.mid", "continuation.wav"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


# ------------------------------------------------------------------------------------------------------ music21


@pytest.fixture
def corpus():
    """The folder of the installed package."""
    if find_spec("music21") is None:
        if os.environ.get("SKIP_SYSTEM") == "1":
            pytest.skip("the package music21 is not installed")
        pytest.fail('the package music21 is not installed: pip install "jaxtrain[music21]", or set SKIP_SYSTEM=1')
    return RECIPE.folder_of(RECIPE.Config())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_corpus_is_that_of_music21(corpus):
    """Every twentieth score as music21 itself reads it."""
    import music21

    files = sorted(corpus.glob("*.mxl"))
    chorales = [path for path in files if len(read_score(path).findall("part")) == 4]
    assert len(files) == 408 and len(chorales) == 364
    for path in {*files[::20]} & {*chorales}:
        score = music21.converter.parse(path, forceSource=True).toSoundingPitch()
        notes = [each for each in score.flatten().notes if not each.duration.isGrace]
        times = [(Fraction(each.offset), Fraction(each.offset) + Fraction(each.quarterLength)) for each in notes]
        truth = np.zeros((math.ceil(max(end for _, end in times)), 88), np.uint8)
        for each, (onset, end) in zip(notes, times, strict=True):
            truth[math.ceil(onset) : math.ceil(end), [pitch.midi - 21 for pitch in each.pitches]] = 1
        np.testing.assert_array_equal(piano_roll(read_score(path)), truth, err_msg=path.name)


@pytest.mark.long
def test_chorales_are_learned(corpus, tmp_path):
    """The sizes of the sets, chance, and a short training with its control."""
    rolls = RECIPE.load(corpus)
    sets = RECIPE.split(rolls)
    assert len(rolls) == 361 and [(len(part), sum(map(len, part))) for part in sets] == SIZES
    train, val, test = map(np.concatenate, sets)
    p = (train.sum(0) + 1) / (len(train) + 2)
    chance, on_test = (-np.log(np.where(part == 1, p, 1 - p)).sum(1).mean() for part in (val, test))
    assert chance == pytest.approx(RECIPE.CHANCE["loss"], abs=0.005) and on_test == pytest.approx(11.29, abs=0.005)
    reached = {}
    for strategy in ("drtrl", "readout_only"):
        config = RECIPE.Config(strategy=strategy, max_steps=400, validate_every=None, progress=False, devices=1)
        fit, module, data = RECIPE.make(config)
        reached[strategy] = fit.run(module, data).metrics["val/loss"]
    assert reached["drtrl"] < 9.0 < reached["readout_only"] < chance


SIZES = [(217, 11683), (72, 3837), (72, 4142)]
