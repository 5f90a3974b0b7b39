"""Prediction: what is shared equals what is not, every frame has its map, and nothing half made looks whole."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from avbook.commands import app
from avbook.media import write_numbered
from avbook.saliency import AVRSP, open_network, predict_files, predict_video, read_prediction, save_avrsp
from avbook.saliency.model import Design
from avbook.saliency.predict import film_edges, film_sound, plan_stretches, stream_maps
from avbook.saliency.quick import quicken
from avbook.saliency.sharing import Span, share
from avbook.saliency.windows import plan_window, window_sound
from avbook.video import Clip, frame_times, iter_frames, probe, write_video
from torch import nn
from typer.testing import CliRunner

TINY = dict(width=1/16, size=(32, 48), fusion_width=64)


def lively(**design):
    "A small network whose norms matter and whose maps are not flat."
    torch.manual_seed(0)
    model = AVRSP(**{**TINY, **design}).eval()
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d): continue
        for values, low, high in ((module.running_mean, -.2, .2), (module.running_var, .5, 2.), (module.bias, -.2, .2)):
            nn.init.uniform_(values, low, high)
    nn.init.normal_(model.decoder.to_maps.weight, std=30)
    return model


def film_of(n_frames, size=(32, 48)):
    "Random frames, their moments, and noise."
    drawn = np.random.default_rng(n_frames)
    edges = [Fraction(number, 25) for number in range(n_frames + 1)]
    return drawn.integers(0, 256, (n_frames, *size, 3), dtype=np.uint8), edges, \
        drawn.uniform(-.5, .5, round(edges[-1]*22_050)).astype(np.float32)


@torch.inference_mode()
def plain_maps(frames, edges, waveform, model, wanted):
    "The plain loop: for each frame its own window, through the network as it was trained."
    maps, precision = [], model.decoder.to_maps.weight.dtype
    for last in wanted:
        window = plan_window(last, len(frames), model.design.n_frames)
        clip = torch.from_numpy(frames[list(window.numbers)]).movedim(-1, 0)[None]
        sound = torch.from_numpy(window_sound(window, waveform, edges, model.design.buffer))[None]
        maps.append(model(clip, sound.to(precision))[0].numpy())
    return np.array(maps)


@pytest.fixture(scope="module")
def network(): return lively()


@pytest.mark.parametrize("n_frames", [1, 2, 31, 32, 33, 62, 63, 100])
def test_each_frame_has_its_map_and_it_is_the_plain_one(network, n_frames):
    film = film_of(n_frames)
    found = np.array(list(stream_maps(*film, quicken(network))))
    assert found.shape == (n_frames, 32, 48)
    wanted = sorted({0, n_frames//3, n_frames//2, min(30, n_frames - 1), min(31, n_frames - 1), n_frames - 1})
    np.testing.assert_allclose(found[wanted], plain_maps(*film, network, wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_outputs", [1, 4, 32])
@pytest.mark.parametrize("n_frames", [1, 2, 31, 32, 33, 62, 63, 100])
def test_every_frame_is_wanted_once(n_frames, n_outputs):
    stretches = plan_stretches(n_frames, 32, n_outputs)
    assert [each for stretch in stretches for each in stretch.wanted] == list(range(n_frames))
    assert all(len(stretch.frames[start:start + 32]) == 32 for stretch in stretches for start in stretch.starts)


@pytest.mark.parametrize("design", [
    dict(), dict(synergy="simple", fusion="concatenation"), dict(placement="inline", scales=1), dict(placement="pooling"),
    dict(scales=4, synergy_time=3), dict(n_frames=21), dict(n_frames=64), dict(synergy="none", gate="none")], ids=str)
def test_shared_equals_plain_in_double_precision(design):
    model = lively(**design).double()
    film, wanted = film_of(80), [3, 30, 40, 63, 70, 79]
    found = np.array(list(stream_maps(*film, quicken(model), batch_size=3)))
    plain = plain_maps(*film, model, wanted)
    assert plain.std() > 1e-4 and found.dtype == np.float64
    np.testing.assert_allclose(found[wanted], plain, rtol=1e-9, atol=1e-12)


def test_what_is_shared_is_what_the_numbers_say():
    "The inner positions, found by comparing windows of random frames, are those derived from the layers."
    torch.manual_seed(0)
    trunk, film = quicken(AVRSP(**TINY, audio=False)).picture.s3d.base.double(), torch.randn(1, 3, 60, 32, 48).double()
    span, at_first, at_second, step = Span(32, 1, range(32)), film[:, :, 8:40], film[:, :, 16:48], 1
    listed = {0: range(2, 15), 3: range(3, 14), 5: range(4, 13), 6: range(5, 12), 7: range(3, 6), 8: range(4, 5)}
    with torch.inference_mode():
        for number, layer in enumerate(trunk):
            span, at_first, at_second = share(layer)(span).span, layer(at_first), layer(at_second)
            n_positions = at_first.shape[2]
            step, assert_inner = 32//n_positions, listed.get(number)
            shift = 8//step   # positions by which the second window is ahead
            equal = [place for place in range(n_positions - shift)
                     if torch.allclose(at_first[:, :, place + shift], at_second[:, :, place], rtol=0, atol=1e-9)]
            expected = [place for place in span.inner if place + shift in span.inner]
            assert equal == expected, number
            if assert_inner: assert span.inner == assert_inner
            if number > 8: assert not span.inner


def test_a_hidden_change_of_one_frame_moves_only_the_windows_that_see_it(network):
    "Nothing of one window leaks into another through what is kept."
    frames, edges, waveform = film_of(70)
    before = np.array(list(stream_maps(frames, edges, waveform, quicken(network))))
    frames[20] = 255 - frames[20]
    after = np.array(list(stream_maps(frames, edges, waveform, quicken(network))))
    moved = [number for number in range(70) if not np.array_equal(before[number], after[number])]
    assert moved == [number for number in range(70) if 20 in plan_window(number, 70, 32).numbers]


def test_sound_is_read_in_pieces_as_a_whole(tmp_path, monkeypatch):
    frames, _, _ = film_of(150)
    time_axis = np.arange(6*22_050)/22_050
    waveform = .5*np.sin(2*np.pi*(200*time_axis + 40*time_axis**2))
    film = Clip(write_video(tmp_path/"film.mp4", frames, 25, waveform, 22_050))
    with film_sound(film) as whole: whole = np.array(whole)
    monkeypatch.setattr("avbook.saliency.predict._CHUNK", 1)
    with film_sound(film) as pieces:
        assert len(pieces) == len(whole)
        np.testing.assert_allclose(pieces, whole, atol=2e-3)


def test_sound_and_frames_of_a_piece_begin_together(tmp_path):
    tone = np.sin(np.arange(2*22_050)/3).astype(np.float32)
    film = write_video(tmp_path/"film.mp4", np.zeros((50, 32, 48, 3), np.uint8), 25, tone, 22_050)
    piece = Clip(film, Fraction(51, 100), Fraction(3, 2))   # between two frames: the first shown is that of .52 s
    with film_sound(piece) as heard: assert len(heard)/22_050 == pytest.approx(float(film_edges(piece)[-1]), abs=1e-3)


def test_a_variable_rate_keeps_sound_and_picture_together(tmp_path):
    "Frames are heard when they are shown, not at their number divided by the mean rate."
    film = write_numbered(tmp_path/"numbered.mp4", 12, stamps=[10*number*number for number in range(12)])
    model = lively(n_frames=8)
    frames = np.array([picture for _, picture in iter_frames(film, (32, 48))])
    shown = frame_times(film)
    edges = [moment - shown[0] for moment in [*shown, probe(film).start + probe(film).duration]]
    plain = plain_maps(frames, edges, np.zeros(math.ceil(edges[-1]*22_050), np.float32), model, range(12))
    np.testing.assert_allclose(predict_video(film, model), plain, rtol=1e-4, atol=1e-6)


SLOWLY = """
import sys, time
import torch
torch.set_num_threads(1)
from avbook.saliency import AVRSP, write_prediction
import avbook.saliency.predict as predict
inner = predict._window_maps
def slow(*given):
    time.sleep(.2)
    return inner(*given)
predict._window_maps = slow
write_prediction(sys.argv[1], sys.argv[2], AVRSP(width=1/16, size=(32, 48), n_frames=8, fusion_width=64).eval(), kind=sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_killed_midway_leaves_nothing_that_looks_whole(tmp_path, kind):
    film, out = write_video(tmp_path/"film.mp4", film_of(120)[0], 25), tmp_path/"out"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, film, out/"film.mp4.saliency", kind],
                               env=dict(os.environ, OMP_NUM_THREADS="1"))
    begun, until = [], time.monotonic() + 60
    while not begun and time.monotonic() < until:
        time.sleep(.1)
        begun = [*out.glob(".*/maps/000010.png"), *(each for each in out.glob(".*/maps.raw") if each.stat().st_size)]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and begun
    left = [each.name for each in out.iterdir()]
    assert left and all(".part." in name for name in left)
    assert not list(out.rglob("about.json")) and not list(out.rglob("*.npz"))
    with pytest.raises(FileNotFoundError): read_prediction(out/"film.mp4.saliency")
    problems = predict_files([film], out, lively(n_frames=8), kind=kind)   # the same again goes through
    assert not problems and read_prediction(out/"film.mp4.saliency").shape == (120, 32, 48)


def test_the_command_finishes_the_others_and_says_which_failed(tmp_path):
    films, out = tmp_path/"films", tmp_path/"out"
    for name in ("a.mp4", "c.mp4"): write_video(films/name, film_of(3)[0], 25)
    (films/"b.mp4").write_bytes(b"no film at all")
    weights = tmp_path/"avrsp.safetensors"
    save_avrsp(lively(n_frames=8), weights)
    asked = ["saliency", "predict", str(films), "--run", str(weights), "--out", str(out), "--overlay"]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 1 and "1 of the videos" in answer.output
    assert sorted(each.name for each in out.iterdir()) == ["a.mp4.saliency", "c.mp4.saliency"]
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(made) == 6 and probe(out/"a.mp4.saliency"/"overlay.mp4").n_frames == 3
    (films/"b.mp4").unlink()
    again = CliRunner().invoke(app, asked)   # what is finished is left alone
    assert again.exit_code == 0 and {path: path.stat().st_mtime_ns for path in made} == made
    assert CliRunner().invoke(app, [*asked[:4], str(tmp_path/"no.safetensors")]).exit_code == 2
    assert "Examples" in CliRunner().invoke(app, ["saliency", "predict", "--help"]).output


def test_random_weights_say_that_they_mean_nothing(caplog):
    model = open_network("random", **TINY)
    assert "mean nothing" in caplog.text and isinstance(model.design, Design)
    for name, tensor in open_network("random", **TINY).state_dict().items(): assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("place", ["gaze/012.mp4", "clips/decord__flipping_a_pancake.mkv", "clips/mmaction2__test.avi"])
def test_real_films_from_end_to_end(samples, tmp_path, place):
    "A second and a half of each at 64x96; the whole again on the disk gives the same maps."
    film = samples/place
    if not film.exists(): pytest.skip(f"{place} is not among the samples")
    info = probe(film)
    clip, model = Clip(film, info.start, info.start + Fraction(3, 2)), open_network("random", width=1/16, size=(64, 96))
    maps = predict_video(clip, model)
    assert maps.shape == (len(frame_times(clip)), 64, 96) and np.isfinite(maps).all()
    assert (maps > 0).all() and (maps < 1).all() and maps.std() > 0
    np.testing.assert_array_equal(predict_video(clip, model), maps)


def test_a_prediction_says_what_it_was_made_from(tmp_path):
    film = write_video(tmp_path/"film.mp4", film_of(4)[0], Fraction(30_000, 1001))
    predict_files([film], tmp_path, lively(n_frames=8))
    about = json.loads((tmp_path/"film.mp4.saliency"/"about.json").read_text())
    assert (about["film"], about["n_frames"], about["fps"], about["size"]) == ("film.mp4", 4, "30000/1001", [32, 48])
