"""The training notebook on miniature public sets, from the cards' folders to a record."""
import pytest
from test_saliency_layouts import videos_of, write_dhf1k, write_stavis

from avbook.repro import project_root
from avbook.runs import ParameterError, RunFailed, plan, run

NOTEBOOK = project_root()/"nbs"/"1_saliency"/"18_train.ipynb"
SMALL = dict(data="films", missing="skip", sets=["avad", "etmd"], n_first_steps=1, n_steps=1, batch_size=2, test_stride=5)


@pytest.fixture
def films(tmp_path, monkeypatch):
    "Three films of DHF1K to learn from, two of AVAD and of ETMD, and one each to judge by."
    monkeypatch.setenv("AVBOOK_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    for video in ("0001", "0002", "0003", "0601"): write_dhf1k(tmp_path/"data"/"dhf1k", video, is_raw=True)
    for card, database in dict(avad="AVAD", etmd="ETMD_av").items():
        for part, n_videos in dict(train=3, test=1).items():
            for row in videos_of(card, "fold_1", part, n_videos).itertuples():
                write_stavis(tmp_path/"data"/card, row.video, database, row.fps)
    return tmp_path


def test_both_stages_on_films(films):
    record = run(NOTEBOOK, SMALL, runs=films/"runs")
    scored = {(row["set"], row["metric"]): row for row in record["metrics"] if "set" in row}
    assert {name for name, _ in scored} == {"avad", "etmd"}
    assert all(row["n"] == 1 and row["unit"] == "film" for row in scored.values())
    assert 0 < scored["avad", "auc_judd"]["value"] <= 1
    [weights] = (films/"runs").glob("18_train/*/avrsp.safetensors")
    second = run(NOTEBOOK, SMALL | dict(start=str(weights), fusion="concatenation"), runs=films/"runs")
    assert {row["set"] for row in second["metrics"] if "set" in row} == {"avad", "etmd"}


def test_a_set_that_is_not_there_is_named(films):
    with pytest.raises(RunFailed, match="coutrot1"):
        run(NOTEBOOK, SMALL | dict(sets=["coutrot1"], audio=False), runs=films/"runs")


def test_parameters_are_refused_before_anything_starts():
    with pytest.raises(ParameterError, match="fusion is 'ravff'"): plan(NOTEBOOK, [dict(fusion="ravff")])
    with pytest.raises(ParameterError, match="no parameter widht"): plan(NOTEBOOK, [dict(widht=1.)])
