"""Gaze against a literal loop, tables as programs really write them, and the real gaze among the samples."""
import logging
import shutil
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from avbook.saliency.data import (
    FIXATION_COLUMNS, density_maps, fixated_maps, gaze_problems, hold_out, mean_density, read_diem, read_gaze_folder,
    spread_over_frames, to_gaze)
from avbook.saliency.layouts import LabelledClip, clip_problems
from avbook.saliency.metrics import score
from avbook.video import Clip, write_video

HEADER = ",".join(FIXATION_COLUMNS)


@pytest.fixture
def folder(tmp_path):
    "A folder with one video, 01.mp4: 20 frames of 32x48 at 10 a second."
    write_video(tmp_path/"01.mp4", np.full((20, 32, 48, 3), 90, np.uint8), fps=10)
    return tmp_path


def looped(rests, edges):
    "Where each observer looked in each frame, by the definition."
    places = {}
    for rest in rests.itertuples():
        for frame, (shown, gone) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            held = min(gone, rest.onset_ms + rest.duration_ms) - max(shown, rest.onset_ms)
            best, _ = places.get((rest.observer, frame), (0, None))
            if held > 0 and held >= best: places[rest.observer, frame] = held, (rest.x, rest.y)
    return {key: place for key, (_, place) in places.items()}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_fixations_reach_the_frames_they_overlap(seed):
    generator = np.random.default_rng(seed)
    edges = np.cumsum(generator.integers(1, 60, generator.integers(2, 15)))
    n_rests = generator.integers(0, 30)
    rests = pd.DataFrame(dict(
        observer=generator.integers(0, 4, n_rests).astype(str), onset_ms=generator.integers(-50, edges[-1] + 50, n_rests),
        duration_ms=generator.integers(1, 200, n_rests), x=range(n_rests), y=0))
    found = {(row.observer, row.frame): (row.x, row.y) for row in spread_over_frames(rests, edges).itertuples()}
    assert found == looped(rests, edges)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_no_look_is_lost_on_the_way_to_a_map(height, width, map_height, map_width, seed):
    generator = np.random.default_rng(seed)
    gaze = generator.random((5, 3, 2))*[width, height]
    maps = fixated_maps(gaze, (height, width), (map_height, map_width), counts=True)
    assert (maps.sum((1, 2)) == 5).all()
    density = density_maps(gaze, (height, width), (map_height, map_width), sigma=generator.uniform(.01, 10))
    np.testing.assert_allclose(density.sum((1, 2)), 1, atol=1e-4)


def test_density_is_scipys_blur_away_from_the_edges():
    gaze = np.array([[[40, 30]], [[60, 44]]])
    expected = gaussian_filter(fixated_maps(gaze, (80, 100))[0].astype(float), 4., truncate=8)
    np.testing.assert_allclose(density_maps(gaze, (80, 100), sigma=4.)[0], expected/expected.sum(), atol=1e-9)


@pytest.mark.parametrize("text", [
    f"{HEADER}\n7,01,0,150,10,10\n",
    f"\ufeff{HEADER}\r\n7,01,0,150,10,10\r\n",                                  # Excel
    f"{HEADER},note\n7,01.mp4,0,150,10.0,10.0,\"a, b\"\n\n",                     # more columns, a blank last line
    "y_px,x_px,duration_ms,onset_ms,video,observer\n10,10,1.5e2,0,\"01\",\"7\"\n",  # another order, quoted
])
def test_tables_as_programs_write_them(folder, text):
    (folder/"fixations.csv").write_bytes(text.encode())
    watched, = read_gaze_folder(folder)
    assert not gaze_problems(folder)
    assert (watched.name, watched.observers, watched.size, watched.n_frames) == ("01", ["7"], (32, 48), 20)
    assert watched.looks[["frame", "x", "y"]].to_numpy().tolist() == [[0, 10, 10], [1, 10, 10]]


@pytest.mark.parametrize("line, sentence", [
    ("7,01,0,-5,10,10", "line 2: it starts at 0 ms and lasts -5 ms"),
    ("7,01,-9,50,10,10", "line 2: it starts at -9 ms and lasts 50 ms"),
    ("7,01,2000,50,10,10", "line 2: it starts at 2000 ms, and 01 has ended at 2000 ms"),
    ("7,01,0,50,48,10", "line 2: (48, 10) is outside of a picture of 48x32"),
    ("7,01,0,50,10,-0.5", "line 2: (10, -0.5) is outside of a picture of 48x32"),
    ("7,02,0,50,10,10", "line 2: there is no video '02' in the folder"),
    ("7,01,0,50,10,5,10", "line 2: '7,01,0,50,10,5,10' has more values than the first line has names"),
    ("7,01", "line 2: '7,01' lacks a number"),
    ("7,01,0,50,,10", "line 2: '7,01,0,50,,10' lacks a number"),
    ("7,01,0,50,nan,10", "line 2: '7,01,0,50,nan,10' lacks a number"),
    ("7,01,0,inf,1,10", "line 2: '7,01,0,inf,1,10' lacks a number"),
    ("8,01,0,50,10,10\n8,01,0,50,10,10", "line 3: the same fixation stands in an earlier line"),
])
def test_each_fault_has_its_sentence(folder, caplog, line, sentence):
    (folder/"fixations.csv").write_text(f"{HEADER}\n{line}\n9,01,0,2000,10,10\n")
    assert str(gaze_problems(folder)[0]) == f"{folder/'fixations.csv'}, {sentence}"
    with caplog.at_level(logging.WARNING): watched, = read_gaze_folder(folder)
    assert "1 of " in caplog.text and "left out" in caplog.text
    assert watched.gaze.shape == (1 + (line[0] == "8"), 20, 2)


@pytest.mark.parametrize("text, sentence", [
    ("", "its first line is \\[\\]"), ("observer;video\n", "lacks column"),
    ("observer,video,onset_ms,duration_ms,x,y\n", "lacks column.s. \\['x_px', 'y_px'\\]")])
def test_a_table_that_is_none(folder, text, sentence):
    (folder/"fixations.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence): read_gaze_folder(folder)


def test_a_table_that_is_no_text(folder):
    shutil.copy(folder/"01.mp4", folder/"fixations.csv")
    with pytest.raises(ValueError, match="is no table of comma-separated values"): read_gaze_folder(folder)


def test_only_faulty_lines_leave_no_clip(folder):
    (folder/"fixations.csv").write_text(f"{HEADER}\n7,02,0,50,10,10\n")
    assert read_gaze_folder(folder) == []


def test_a_folder_without_its_parts(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="fixations.csv does not exist"): read_gaze_folder(folder)
    with pytest.raises(FileNotFoundError, match="holds no video"): read_gaze_folder(tmp_path/"nowhere")
    shutil.copy(folder/"01.mp4", folder/"01.mkv")
    with pytest.raises(ValueError, match="differ in their ending only"): gaze_problems(folder)


def test_held_out_observers_of_a_long_film_in_little_memory():
    "Group after group, never all of them at once."
    gaze = np.random.default_rng(0).random((12, 200, 2))*[64, 48]
    groups = hold_out(gaze, (48, 64), n_groups=4)
    first = next(groups)
    assert first.predicted.shape == (200, 48, 64) and first.predicted.dtype == np.float32
    others = np.setdiff1d(np.arange(12), first.observers)
    np.testing.assert_allclose(first.predicted, density_maps(gaze[others], (48, 64)), atol=1e-7)
    assert len(list(groups)) == 3


def test_real_gaze(samples, caplog):
    problems = gaze_problems(samples/"gaze")
    assert {problem.kind for problem in problems} == {"after the last frame"} and len(problems) == 44
    watched = {clip.name: clip for clip in read_gaze_folder(samples/"gaze")}
    assert {name: clip.n_frames for name, clip in watched.items()} == {"012": 396, "022": 476, "053": 618}
    for clip in watched.values():
        assert len(clip.observers) == 39 and clip.size == (720, 1280)
        assert all(isinstance(time, Fraction) for time in clip.times[:3]) and clip.times[0] == 0
        assert .8 < (~np.isnan(clip.gaze[..., 0])).mean() < 1
    clip = watched["022"]
    one, _ = hold_out(clip.gaze[:, 100:110], clip.size, (45, 80), n_groups=2)
    others = score(one.predicted, one.density, one.fixated).mean()
    flat = score(np.ones_like(one.predicted), one.density, one.fixated).mean()
    assert others.nss > 2 and others.auc_judd > .85 and others.cc > .5 and flat.nss == 0 and flat.auc_judd == .5
    assert mean_density(clip.gaze, clip.size, (45, 80)).sum() == pytest.approx(1, abs=1e-5)


def test_real_diem_gaze(samples):
    "Six observers; the median look is near the picture's middle, so the screen's size and the offset are right."
    looks, picture = read_diem((samples/"gaze/diem_arctic_bears").glob("*.txt"))
    gaze = to_gaze(looks, 2785)
    assert picture == (710, 1066) and gaze.shape == (6, 2785, 2)
    assert .9 < (~np.isnan(gaze[..., 0])).mean() < 1
    middle = np.nanmedian(gaze, axis=(0, 1))/[1066, 710]
    assert np.abs(middle - .5).max() < .1
    assert fixated_maps(gaze[:, :10], picture, (71, 107)).sum((1, 2)).min() >= 3


def test_a_clip_that_breaks_off_keeps_its_numbers(samples, tmp_path):
    "49 of 50 frames decode: the lost one repeats the one before it, and the report says so."
    film = samples/"clips/decord__corrupted.mp4"
    maps = [tmp_path/f"{number:04d}.png" for number in range(50)]
    clip = LabelledClip("broken", Fraction(30), Clip(film), tuple(maps), tuple(maps), film)
    assert len(clip.frames(range(50), (18, 32))) == 50
    assert any("do not decode" in problem.text for problem in clip_problems([clip], is_deep=True))
