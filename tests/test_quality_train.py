"""The training notebook on miniature public sets, from their folders to a record."""
import numpy as np
import pandas as pd
import pytest

from avbook.quality.model import load_vqa
from avbook.repro import project_root
from avbook.runs import ParameterError, RunFailed, plan, run
from avbook.video import write_video

NOTEBOOK = project_root()/"nbs"/"3_quality"/"38_train.ipynb"
SMALL = dict(rough_steps=1, fine_steps=1, rough_batch=4, fine_batch=2, n_clips=1, n_pairs=10)


def write_films(folder, names):
    "Small films, each of its own noise; the later ones have more of it."
    for number, name in enumerate(names):
        draw = np.random.default_rng(number)
        frames = 128 + draw.normal(0, 2 + 3*number, (16, 64, 80, 3))
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder/name, frames.clip(0, 255).astype(np.uint8), fps=25)


def opinions_of(n_films): return np.linspace(4.5, 1.5, n_films).round(2)


@pytest.fixture
def konvid(tmp_path, monkeypatch):
    "Thirty videos in KoNViD-1k's folders, without an official division."
    monkeypatch.setenv("AVBOOK_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    root, names = tmp_path/"data"/"konvid_1k", [f"{number}.mp4" for number in range(1000, 1030)]
    write_films(root/"videos"/"KoNViD_1k_videos", names)
    table = pd.DataFrame(dict(flickr_id=range(1000, 1030), file_name=names, MOS=opinions_of(30)))
    (root/"metadata").mkdir()
    table.to_csv(root/"metadata"/"KoNViD_1k_attributes.csv", index=False)
    return tmp_path


@pytest.fixture
def kvq(tmp_path, monkeypatch):
    "KVQ's folders in miniature: an official division whose test part has no opinions."
    monkeypatch.setenv("AVBOOK_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    root = tmp_path/"data"/"kvq"
    for part, file, n_films in (("train", "train_data", 8), ("val", "val_data", 6), ("test", "test_data", 2)):
        names = [f"{number:04}.mp4" for number in range(n_films)]
        write_films(root/part, names)
        table = pd.DataFrame(dict(filename=[f"{part}/{name}" for name in names]))
        if part != "test": table["score"] = opinions_of(n_films)
        table.to_csv(root/f"{file}.csv", index=False)
    return tmp_path


def test_both_stages_on_videos_in_two_passes(konvid):
    "Correlations of the whole batch from pieces of it; and the fine stage alone, from the rough one's weights."
    asked = SMALL | dict(data="konvid_1k", n_in_piece=2, patches="linear", paths="slow", loss="plcc")
    record = run(NOTEBOOK, asked, runs=konvid/"runs")
    scored = {(row["stage"], row["metric"]): row for row in record["metrics"] if row.get("unit") == "video"}
    assert {stage for stage, _ in scored} == {"rough", "rough, seeing as fine", "fine"}
    assert all(row["n"] == 6 for row in scored.values())
    [weights] = (konvid/"runs").glob("38_train/*/rough.safetensors")
    assert load_vqa(weights).calibration.fitted_on in ("", "konvid_1k")
    again = run(NOTEBOOK, asked | dict(start=str(weights), n_in_piece=None), runs=konvid/"runs")
    assert {row["stage"] for row in again["metrics"] if row.get("unit") == "video"} == {"fine"}


def test_where_test_opinions_are_kept_secret_validation_is_judged(kvq):
    record = run(NOTEBOOK, SMALL | dict(data="kvq", loss="rank", paths="fast"), runs=kvq/"runs")
    assert all(row["n"] == 6 for row in record["metrics"] if row.get("unit") == "video")


def test_a_set_that_is_not_there_is_named(konvid):
    with pytest.raises(RunFailed, match="lsvq"): run(NOTEBOOK, SMALL | dict(data="lsvq"), runs=konvid/"runs")


def test_parameters_are_refused_before_anything_starts():
    with pytest.raises(ParameterError, match="paths is 'fats'"): plan(NOTEBOOK, [dict(paths="fats")])
    with pytest.raises(ParameterError, match="no parameter lambda"): plan(NOTEBOOK, [{"lambda": .3}])
