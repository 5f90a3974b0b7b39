"""Windows against STAViS' sound slices written out, in worker processes, under several hands at once, and on real clips."""
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avbook.audio import audio_window
from avbook.batches import SampleBatches
from avbook.media import number_of, write_numbered
from avbook.saliency.data import Watched, read_gaze_folder
from avbook.saliency.encoders import SoundNet
from avbook.saliency.evaluation import evaluate
from avbook.saliency.layouts import LabelledClip
from avbook.saliency.losses import saliency_loss
from avbook.saliency.metrics import average
from avbook.saliency.model import AVRSP, Design
from avbook.saliency.windows import (
    Film, FixedWindows, TrainingWindows, WindowShape, clip_edges, film_edges, plan_window, window_sound)
from avbook.video import Clip, frame_times


def stavis_excerpt(waveform, fps, first, n_frames, n_samples, sample_rate):
    "Line by line as in STAViS and ViNet: frames are counted from 1 there; exact fractions in place of floats."
    length = sample_rate/Fraction(fps)
    starts = [int(max(0, (frame - 1)*length - length/2)) for frame in range(1, first + n_frames + 2)]
    ends = [int(min(len(waveform), abs((frame - 1)*length + length/2))) for frame in range(1, first + n_frames + 2)]
    excerpt = waveform[starts[first]:ends[first + n_frames - 1] + 1]
    valid, buffer = excerpt*np.hanning(len(excerpt)), np.zeros(n_samples)
    middle, half = n_samples//2, len(valid)//2
    if len(valid) % 2 == 0: buffer[middle - half:middle + half] = valid
    else: buffer[middle - half:middle + half + 1] = valid
    return buffer


@settings(max_examples=80, deadline=None)
@given(fps=st.sampled_from([Fraction(25), Fraction(30_000, 1001), Fraction(24), 15, Fraction(25, 2)]), last=st.integers(0, 99),
       n_heard=st.integers(0, 4500), n_frames=st.sampled_from([1, 7, 16]), sample_rate=st.sampled_from([999, 1000]))
def test_sound_is_stavis(fps, last, n_heard, n_frames, sample_rate):
    waveform = np.random.default_rng(last).uniform(-1, 1, n_heard).astype(np.float32)
    window = plan_window(last, 100, n_frames)
    found = window_sound(window, waveform, film_edges(100, fps), 2000, sample_rate, "stavis")
    expected = stavis_excerpt(waveform, fps, min(window.start, 99), min(n_frames, 100 - window.start), 2000, sample_rate)
    np.testing.assert_allclose(found[::-1] if window.is_reversed else found, expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(n_in_film=st.integers(1, 130), n_frames=st.integers(1, 40), fps=st.sampled_from([25, Fraction(30_000, 1001), 7.5]))
def test_every_frame_of_every_film_has_a_window(n_in_film, n_frames, fps):
    edges = film_edges(n_in_film, Fraction(fps))
    waveform = np.ones(round(edges[-1]*200), np.float32)
    for first_frames in ("reverse", "repeat"):
        for last in {0, n_in_film//2, n_in_film - 1}:
            window = plan_window(last, n_in_film, n_frames, first_frames)
            assert len(window.numbers) == n_frames and window.numbers[-1] == last
            assert 0 <= min(window.numbers) and max(window.numbers) < n_in_film
            heard = window_sound(window, waveform, edges, 12_000, 200)
            if window.start >= 0 and window.start + n_frames <= n_in_film:
                cut = audio_window(window.start, n_frames, fps, 200)
                assert np.count_nonzero(heard) == max(0, cut.stop - cut.start - 2) or cut.stop - cut.start < 3


def test_full_scale_reaches_256(tmp_path):
    "SoundNet's range: a sine over the whole of 16 bits comes out of the windows within 1 and goes into the network times 256."
    sine = np.round(32_767*np.sin(np.arange(22_050*2)/3)).astype(np.int16)
    soundfile.write(tmp_path/"a.wav", sine, 22_050, subtype="PCM_16")
    images = tuple(tmp_path/f"{number}.png" for number in range(50))
    clip = LabelledClip("a", Fraction(25), images, images, images, tmp_path/"a.wav")
    excerpt = window_sound(plan_window(40, 50), clip.waveform(), film_edges(50, 25))
    assert .99 < np.abs(excerpt).max() <= 1
    heard = []
    network = SoundNet(1/8)
    network.stages[0].register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    network(torch.from_numpy(excerpt)[None])
    assert 253 < heard[0].abs().max() <= 256


@pytest.fixture
def numbered(tmp_path):
    "A film whose frames tell their numbers, looked at in its left half by one person."
    write_numbered(tmp_path/"a.mp4", 60)
    times = tuple(Fraction(number, 25) for number in range(60))
    looks = pd.DataFrame(dict(observer="ann", frame=range(60), x=np.arange(60)*1., y=48.))
    return Watched("a", Clip(tmp_path/"a.mp4"), (96, 128), times, looks)


SHAPE = WindowShape(size=(96, 128), n_frames=8, n_samples=2000, sample_rate=8000)


def test_a_sample_is_of_the_frames_that_it_names(numbered, tmp_path):
    for cache in (None, tmp_path/"cache"):
        film = Film(numbered, SHAPE, cache)
        for last in (0, 3, 7, 30, 59):
            window = plan_window(last, 60, 8)
            frames = film.given(window)["frames"].permute(1, 2, 3, 0).numpy()
            assert tuple(map(number_of, frames)) == window.numbers
            assert film.targets(window).max(0).values.argmax() == pytest.approx(last, abs=1)


def test_many_hands_decode_once(numbered, tmp_path):
    films = [Film(numbered, SHAPE, tmp_path/"cache") for _ in range(6)]
    with ThreadPoolExecutor(6) as threads: frames = list(threads.map(lambda film: film.frames(range(60)), films))
    assert all((each == frames[0]).all() for each in frames)
    assert len([path for path in (tmp_path/"cache").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("cache", [None, "cache"])
def test_workers_draw_what_one_process_draws(numbered, tmp_path, cache):
    windows = TrainingWindows([numbered]*4, SHAPE, cache and tmp_path/cache)
    drawn = [[(ids, batch["frames"].sum().item()) for epoch in range(2)
              for ids, batch in SampleBatches(windows, 2, seed=3, n_workers=n_workers).start(epoch)] for n_workers in (0, 1)]
    assert drawn[0] == drawn[1]
    assert len({name for ids, _ in drawn[0] for name in ids}) > 3   # a window of its own for each epoch and film


def test_a_half_written_folder_is_never_read(numbered, tmp_path, monkeypatch):
    film = Film(numbered, SHAPE, tmp_path/"cache")
    monkeypatch.setattr(Watched, "waveform", lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): film.frames([0])
    assert not film.folder.exists()
    monkeypatch.undo()
    assert film.frames([0]).shape == (1, 96, 128, 3)
    assert not list((tmp_path/"cache").glob(".*part*"))


def test_variable_rates_keep_their_moments(samples):
    path = samples/"clips/moviepy__fire2.mp4"
    shown = frame_times(path)
    times = tuple(moment - shown[0] for moment in shown)
    edges = clip_edges(Watched("fire", Clip(path), (1, 1), times, pd.DataFrame()))
    assert edges[:-1] == list(times) and len(set(np.diff(edges))) > 1
    sound = window_sound(plan_window(20, len(times), 16), np.ones(round(edges[-1]*1000), np.float32), edges, 9000, 1000)
    assert np.count_nonzero(sound) == pytest.approx(float(edges[21] - edges[5])*1000, abs=3)


def test_real_gaze_trains_and_is_scored(samples, tmp_path):
    "One real clip, cut to a few seconds' frames: a step on it, and scores against 39 people."
    (tmp_path/"gaze").mkdir()
    for name in ("012.mp4", "fixations.csv"): shutil.copy(samples/"gaze"/name, tmp_path/"gaze")
    clip, = read_gaze_folder(tmp_path/"gaze")
    shape = WindowShape(size=(36, 64), n_frames=8, n_samples=17_640)
    torch.manual_seed(0)
    network = AVRSP(Design(width=1/8, n_frames=8, size=(36, 64), n_samples=17_640, n_blocks=1, momentum=.1))
    sample = TrainingWindows([clip], shape)[0]
    loss = saliency_loss(network(sample["frames"][None], sample["waveform"][None]), sample["density"][None])
    loss.backward()
    assert torch.isfinite(loss) and sample["waveform"].any()
    cache = tmp_path/"cache"
    assert len(FixedWindows([clip], shape, 64, cache)) == 7
    scores = evaluate(network.eval(), [clip], shape, stride=60, size=(90, 160), cache=cache)
    assert len(scores) == 7 and average(scores).notna().all()
    everyone = evaluate(lambda frames, sound: torch.from_numpy(clip.density(range(0, 396, 60), (36, 64))), [clip], shape,
                        stride=60, size=(90, 160), cache=cache)
    assert average(everyone).nss > 2 and average(everyone).cc > .9
