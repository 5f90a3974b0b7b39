"""Tables as they really come, parts that must not leak, clips by a literal reading, and the real labels among the samples."""
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avbook.batches import open_batches
from avbook.quality.data import FrameCache, RatedClips, Source, View, cut_view, reflected, size_for, sources_of
from avbook.quality.metrics import KINDS, pair_accuracy
from avbook.quality.tables import (
    LabelError, Manifest, RatedVideo, detect_layout, label_problems, read_dataset, read_labels, read_manifest, read_pairs,
    split_by_source)
from avbook.repro import samples_folder
from avbook.scenes import SceneSpec, render_frames
from avbook.video import write_video

SAMPLES = samples_folder()
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="AVBOOK_SAMPLES names no folder of real sample files")
REAL = { # file: layout, rows, lowest and highest opinion, first path
    "kvq_train_data.csv": ("kvq", 2926, 1.305555556, 4.5, "train/0001.mp4"),
    "fastvqa_KoNViD_labels.txt": ("konvid_1k", 1200, 1.22, 4.64, "KoNViD_1k_videos/4542323058.mp4"),
    "videval_KONVID_1K_metadata.csv": ("konvid_1k", 1200, 1.22, 4.64, "videos/KoNViD_1k_videos/3339962845.mp4"),
    "fastvqa_LIVE_VQC_labels.txt": ("live_vqc", 585, 6.22368, 94.2865, "Video/A001.mp4"),
    "fastvqa_LSVQ_labels_head.txt": ("lsvq", 400, 22.745098, 91.033333, "yfcc-batch1/747.mp4"),
    "fastvqa_YouTubeUGC_labels.txt": ("youtube_ugc", 1147, 1.242, 4.677, "Sports_2160P-4e9f_crf_10_ss_00_t_20.0.mp4"),
}


@needs_samples
@pytest.mark.parametrize("name", REAL)
def test_real_labels(name):
    layout, n_rows, lowest, highest, first = REAL[name]
    path = SAMPLES/"quality"/name
    assert detect_layout(path) == layout and label_problems([path], layout) == []
    manifest = read_labels([path], layout)
    opinions = [row.opinion for row in manifest.rows]
    assert len(manifest) == n_rows and manifest.rows[0].path == first
    assert math.isclose(min(opinions), lowest, rel_tol=1e-6) and math.isclose(max(opinions), highest, rel_tol=1e-6)
    assert manifest.has_sources == (layout != "kvq")


@needs_samples
def test_two_tables_of_one_dataset_agree():
    tables = [read_labels([SAMPLES/"quality"/name], "konvid_1k") for name in
              ("fastvqa_KoNViD_labels.txt", "videval_KONVID_1K_metadata.csv")]
    one, other = ({Path(row.path).stem: row.opinion for row in table.rows} for table in tables)
    assert one.keys() == other.keys() and max(abs(one[name] - other[name]) for name in one) < 1e-6


@needs_samples
def test_a_real_clip_is_found_and_cut(tmp_path):
    (tmp_path/"videos/KoNViD_1k_videos").mkdir(parents=True)
    (tmp_path/"videos/KoNViD_1k_videos/10053703034.mp4").symlink_to(SAMPLES/"quality/konvid_10053703034.mp4")
    (tmp_path/"KoNViD_1k_mos.csv").write_text("flickr_id,mos\n10053703034,3.46\n")
    view = View(8, 64, n_clips=2)
    sample = RatedClips(sources_of(read_dataset("konvid_1k", tmp_path), None, view), view)[0]
    assert sample["frames"].shape == (2, 3, 8, 64, 64) and math.isclose(sample["opinion"], 3.46, rel_tol=1e-6)


def table(folder, text, name="labels.csv"):
    (folder/name).write_text(text)
    return folder/name


@pytest.mark.parametrize("text, line, said", [
    ("video,mos\na.mp4,nan\n", 2, "the opinion of a.mp4 is 'nan'"),
    ("video,mos\na.mp4,inf\n", 2, "the opinion of a.mp4 is 'inf'"),
    ("video,mos\na.mp4,good\n", 2, "the opinion of a.mp4 is 'good'"),
    ("video,mos\na.mp4,\n", 2, "the opinion of a.mp4 is ''"),
    ("video,mos\na.mp4,3\na.mp4,3\n", 3, "a.mp4 stands in line 2 already"),
    ("video,mos\na.mp4,0.5\n", 2, "the opinion of a.mp4 is 0.5, not from 1 to 5"),
    ("video,mos\n\n\nmissing.mp4,3\n", 4, "the video missing.mp4 is missing"),
    ("a.mp4,3\n", 1, "'a.mp4,3' stands where the header should"),
    ("video,mos\na.mp4,3,4\n", 2, "3 values, but 2 columns"),
    ("video,mos\n,3\n", 2, "no video is named"),
    ("video,mos,split\na.mp4,3,later\n", 2, "a.mp4 is in part 'later', which is none"),
    ('video,mos\n"a.mp4\n",3\nb.mp4,9\n', 4, "the opinion of b.mp4 is 9"),
])
def test_each_fault_is_listed_with_its_line(tmp_path, text, line, said):
    for name in ("a.mp4", "b.mp4", "a.mp4\n"): (tmp_path/name).write_bytes(b"a video")
    path = table(tmp_path, text)
    problems = label_problems([path], root=tmp_path, scale=(1, 5))
    assert [(problem.file, problem.line) for problem in problems if said in problem.what] == [(path, line)]
    with pytest.raises(LabelError, match=f"line {line}: "): read_labels([path], root=tmp_path, scale=(1, 5))


def test_windows_and_byte_order_marks_do_no_harm(tmp_path):
    (tmp_path/"labels.csv").write_bytes("\ufeffvideo,mos\r\nübung 1.mp4,3\r\n\r\n".encode())
    (tmp_path/"übung 1.mp4").write_bytes(b"a video")
    assert [row.path for row in read_labels([tmp_path/"labels.csv"], root=tmp_path, scale=(1, 5)).rows] == ["übung 1.mp4"]


def test_what_ugc_has_lost_is_counted_not_refused(tmp_path, caplog):
    table(tmp_path, "vid,MOSFull\na,3\nb,3\nc,3\n", "scores.csv")
    (tmp_path/"b_orig.mkv").write_bytes(b"a video")
    assert [row.path for row in read_dataset("youtube_ugc", tmp_path).rows] == ["b_orig.mkv"]
    assert "2 of 3 videos are not there" in caplog.text


def test_the_authors_own_kvq_lists(tmp_path):
    path = table(tmp_path, "train/0001.mp4, 3, 2, 3.36\ntrain/0002.mp4, 3, 2, 2.5\n", "train.txt")
    manifest = read_labels([path], "kvq")
    assert [(row.path, row.opinion, row.split) for row in manifest.rows] == [
        ("train/0001.mp4", 3.36, "train"), ("train/0002.mp4", 2.5, "train")]
    with pytest.raises(ValueError, match="sources of these videos are not known"): split_by_source(manifest)


def test_versions_of_a_source_in_two_parts_are_refused_from_a_table(tmp_path):
    path = table(tmp_path, "video,mos,group,split\na.mp4,3,lake,train\nb.mp4,2,lake,val\n")
    with pytest.raises(ValueError, match="labels.csv: 1 videos outside of training share a source"):
        read_labels([path], scale=(1, 5))
    assert len(read_labels([path], scale=(1, 5), shares_sources=True)) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 40), st.integers(1, 5), st.integers(0, 1000))
def test_no_source_is_ever_in_two_parts(n_sources, n_versions, seed):
    rows = tuple(RatedVideo(path=f"{source}-{version}", group=str(source))
                 for source in range(n_sources) for version in range(n_versions))
    divided = split_by_source(Manifest(root=".", rows=rows), (.5, .2, .3), seed)
    parts = pd.DataFrame([dict(group=row.group, split=row.split) for row in divided.rows])
    assert len(parts) == len(rows) and parts.groupby("group").split.nunique().max() == 1


def test_a_manifest_comes_back_as_it_was(tmp_path):
    rows = (RatedVideo(path="0001.mp4", opinion=3.25, group="007", split="train", dataset="kvq"),
            RatedVideo(path="b.mp4", low=0, high=100, split="test_1080p"))
    manifest = Manifest(root=tmp_path, rows=rows, has_sources=False)
    assert read_manifest(manifest.write(tmp_path/"m.csv"), tmp_path, has_sources=False) == manifest


def test_the_pair_sheets_go_into_pair_accuracy(tmp_path):
    with pd.ExcelWriter(tmp_path/"rank-pair-val.xlsx") as book:
        for sheet, rank in (("source", 1), ("nonsource", 2)):
            pd.DataFrame([["a", "b", rank], ["c", "d", 1]]).to_excel(book, sheet_name=sheet, index=False, header=False)
    pairs = read_pairs(tmp_path/"rank-pair-val.xlsx")
    assert set(pairs.type) == set(KINDS)
    accuracy = pair_accuracy(pairs, dict(a=2, b=1, c=4, d=3)).accuracy
    assert accuracy.tolist() == [1, .5, .75]
    with pd.ExcelWriter(tmp_path/"bad.xlsx") as book:
        for sheet in ("source", "nonsource"):
            pd.DataFrame([["a", "b", 0]], columns=["x", "y", "rank"]).to_excel(book, sheet_name=sheet, index=False)
    with pytest.raises(LabelError, match="line 2: the rank is '0', not 1 or 2"): read_pairs(tmp_path/"bad.xlsx")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 100))
def test_reflection_is_forwards_and_backwards(n_frames, n_wanted, start):
    there_and_back = [*range(n_frames), *range(n_frames - 2, 0, -1)] or [0]
    expected = [there_and_back[(start + step) % len(there_and_back)] for step in range(n_wanted)]
    assert reflected(start, n_wanted, n_frames).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), st.sampled_from([32, 64, 96]), st.booleans(), st.booleans())
def test_every_view_fits_every_picture(height, width, side, is_random, fragments):
    view = View(2, side, is_random=is_random, fragments=fragments, map_cells=side//32)
    frames = np.zeros((3, height, width, 3), np.uint8)
    seen, found = cut_view(frames, np.array([0, 2]), view, np.full((3, 5, 7), 2.5))
    assert seen.shape == (3, 2, side, side) and np.allclose(found, 2.5)
    assert min(size_for(height, width, view)) >= side


def test_a_video_without_motion_or_end(tmp_path, monkeypatch):
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    write_video(tmp_path/"one.mp4", np.full((1, 64, 64, 3), 90, np.uint8), 25)
    view = View(8, 56, n_clips=2)
    manifest = Manifest(root=tmp_path, rows=(RatedVideo(path="one.mp4", split="test"),))
    sample = RatedClips(sources_of(manifest, "test", view, FrameCache(view)), view)[0]
    assert sample["frames"].shape == (2, 3, 8, 56, 56) and math.isnan(sample["opinion"])
    assert torch.equal(sample["frames"][0, :, 0], sample["frames"][1, :, 7])


def _fill(folder, path): FrameCache(View(8, 56), folder).frames(path)


def test_two_processes_fill_one_cache(tmp_path):
    write_video(tmp_path/"film.mp4", render_frames(SceneSpec(1, n_frames=20, height=64, width=96)), 25)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path/"cache", tmp_path/"film.mp4")) for _ in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    kept = FrameCache(View(8, 56), tmp_path/"cache").frames(tmp_path/"film.mp4")
    assert kept.shape == (20, 64, 96, 3) and len(list((tmp_path/"cache").glob("*.npy"))) == 1


class _Still:
    "Frames that say nothing, to be sent to a loader's process."
    def __call__(self): return np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_what_a_sample_draws_does_not_depend_on_workers(n_workers):
    sources = [Source(str(number), str(number), 3., (1., 5.), _Still()) for number in range(6)]
    clips = RatedClips(sources, View(8, 32, is_random=True))
    batches = open_batches(clips, 2, seed=3, n_workers=n_workers)
    found = torch.stack([batch["start"] for _, batch in batches.start(0)]).ravel().tolist()
    assert found == open_starts(clips)


def open_starts(clips):
    batches = open_batches(clips, 2, seed=3)
    return torch.stack([batch["start"] for _, batch in batches.start(0)]).ravel().tolist()
