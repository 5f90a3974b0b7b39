"""Committed records are run again: the same numbers where nothing changed, and what changed where they differ."""
import json
import math
import os
import subprocess
import sys

import nbformat
import pytest

from avbook.records import check_params
from avbook.reproduce import changed_origin, committed_record, compare_metrics, largest_difference, reproduce
from avbook.runs import run

PARAMETERS = """\
profile: str = "quick"  # one of: smoke, quick
seed: int = 0           # of the weights
"""
BODY = """\
import torch
from avbook.records import write_record
torch.manual_seed(seed)
values = torch.nn.Linear(64, 8)(torch.randn(256, 64)).square().mean(0).tolist()
rows = [dict(metric="energy", value=value, n=256, low=value - .1, high=value + .1, unit=unit)
        for unit, value in enumerate(values)]
write_record([*rows, dict(metric="energy", value=None, n=0, unit=8, reason="there is no such unit")],
             dict(profile=profile, seed=seed))
"""


def write_notebook(path, body=BODY):
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata=dict(tags=["parameters"])), nbformat.v4.new_code_cell(body)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def record(tmp_path, monkeypatch):
    "A run of two threads, its record among committed ones."
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    notebook = write_notebook(tmp_path/"energy.ipynb")
    found = dict(run(notebook, dict(seed=3)), notebook=str(notebook))
    kept = tmp_path/"records"/"saliency"/f"{found['key']}.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps(found))
    return found


def call(*arguments):
    command = [sys.executable, "-c", "from avbook.commands import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(COLUMNS="200"), timeout=300)
    print(f"$ avbook {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}exit code {done.returncode}\n")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_same_code_gives_the_same_numbers_and_other_code_is_found_out(record, tmp_path):
    asked = "runs", "reproduce", record["key"][:10], "--records", tmp_path/"records", "--within", "0"
    code, output, _ = call(*asked)
    assert code == 0 and "largest difference: 0, intervals included; metrics compared: 9" in output
    assert (tmp_path/"artifacts"/"reproduced"/"energy").is_dir()
    write_notebook(tmp_path/"energy.ipynb", BODY.replace("square()", "abs()"))
    code, output, errors = call(*asked)
    assert code == 1 and "more than 0" in errors
    assert "notebook" in output.partition("what differs since then:")[2]
    assert "energy" in output and f"{record['metrics'][0]['value']:.6g}" in output


def test_threads_are_the_records_and_what_was_not_asked_for_is_not_run(record, tmp_path):
    again = reproduce(dict(record, n_threads=1))
    assert again["n_threads"] == 1 and largest_difference(compare_metrics(record, again)) < 1e-6
    assert reproduce(dict(record, n_threads=1)) == again                  # done before
    anew = reproduce(dict(record, n_threads=1), force=True)
    assert anew["written"] >= again["written"] and largest_difference(compare_metrics(again, anew)) == 0
    if record["n_threads"] != 1: assert "n_threads" in changed_origin(record, again).what.tolist()
    lacking = dict(record, metrics=record["metrics"][1:])
    assert largest_difference(compare_metrics(lacking, record)) == math.inf


def test_every_committed_record_can_be_asked_for(root):
    paths = sorted((root/"nbs"/"4_results"/"records").glob("*/*.json"))
    assert paths
    for path in paths:
        record = committed_record(path.stem[:16])
        assert record["key"] == path.stem and record["profile"] != "smoke"
        check_params(root/record["notebook"], record["parameters"])
        assert largest_difference(compare_metrics(record, record)) == 0
