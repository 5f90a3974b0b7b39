"""The command line as a person meets it: exit codes, sentences on the standard error, and the workbook's site."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

PARAMETERS = """\
profile: str = "smoke"  # how much is computed; one of: smoke, quick
seed: int = 0           # of nothing, at least 0
n_steps: int = 1        # of 0.2 seconds each
"""
BODY = """\
import time
from avbook.records import run_folder, write_record
if seed == 13: raise ValueError("13 brings bad luck")
(run_folder()/"checkpoints").mkdir(exist_ok=True)
for step in range(n_steps): time.sleep(.2)
print("did", n_steps, "steps", flush=True)
(run_folder()/"clip.mp4").write_bytes(b"not really")
write_record([dict(metric="steps", value=n_steps, n=1)], dict(profile=profile, seed=seed, n_steps=n_steps))
"""
TABLES = """\
from pathlib import Path
from avbook.runs import load_records
found = load_records(runs, profile)
print("a table of", len(found))
"""


def write_notebook(path, parameters=PARAMETERS, body=BODY):
    cells = [nbformat.v4.new_markdown_cell(f"# Experiment {path.stem}\n\n> $x^2$ of nothing."),
             nbformat.v4.new_code_cell(parameters, metadata=dict(tags=["parameters"])), nbformat.v4.new_code_cell(body)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def book(tmp_path, monkeypatch):
    "A folder of notebooks; what runs goes to a folder beside it."
    monkeypatch.setenv("AVBOOK_ARTIFACTS", str(tmp_path/"artifacts"))
    monkeypatch.delenv("AVBOOK_SAMPLES", raising=False)
    write_notebook(tmp_path/"nbs"/"1_saliency"/"18_train.ipynb")
    return tmp_path/"nbs"


def started(*arguments):
    code = "from avbook.commands import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | dict(COLUMNS="100"))


def call(*arguments):
    process = started(*arguments)
    output, errors = process.communicate(timeout=300)
    print(f"$ avbook {' '.join(map(str, arguments))}\n{output}{errors}exit code {process.returncode}\n")
    assert "Traceback" not in errors
    return process.returncode, output, errors


def test_misspelt_and_mistyped_parameters_are_refused_before_anything_starts(book):
    notebook = book/"1_saliency"/"18_train.ipynb"
    code, _, errors = call("run", notebook, "-p", "n_stps", "100")
    assert (code, errors) == (
        2, "avbook: 18_train.ipynb: there is no parameter n_stps (did you mean n_steps?)\n")
    code, _, errors = call("run", notebook, "-p", "n_steps", "ten", "-p", "seed", "1.5", "-p", "profile", "qick")
    assert code == 2
    assert "n_steps is 'ten', but must be int; seed is 1.5, but must be int; " in errors
    assert "profile is 'qick', but must be one of smoke, quick (did you mean quick?)" in errors
    assert call("sweep", notebook, "-g", "sed=1,2")[0] == 2
    assert not list((book.parent/"artifacts").glob("runs/18_train/*"))


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["run", "18_trian"], "there is no notebook 18_trian"),
    (["run", __file__], "there is no notebook"),
    (["sweep", "{notebook}", "--grid", "gone.json"], "the grid gone.json: No such file"),
    (["runs", "show", "abc"], "0 runs have a key that begins with abc"),
    (["data", "verify", "dhf1"], "did you mean dhf1k?"),
    (["workbook", "--notebooks", "nowhere"], "there is no folder nowhere: go to a checkout"),
])
def test_mistakes_are_told_in_a_sentence(book, arguments, sentence):
    code, _, errors = call(*(each.format(notebook=book/"1_saliency"/"18_train.ipynb") for each in arguments))
    assert code == 2 and sentence in " ".join(errors.split())


def test_data_that_is_not_there_is_a_failure(book, tmp_path, monkeypatch):
    monkeypatch.setenv("AVBOOK_DATA", str(tmp_path/"data"))
    code, _, errors = call("data", "verify", "dhf1k")
    assert code == 1 and "dhf1k" in errors


def test_help_is_quick_and_has_examples():
    began = time.monotonic()
    code, output, _ = call("--help")
    print(f"{time.monotonic() - began:.2f} s")
    assert code == 0 and all(name in output for name in ("run ", "sweep", "runs", "data", "workbook"))
    for command in (["run"], ["sweep"], ["workbook"], ["runs", "show"], ["runs", "list"], ["data", "fetch"]):
        assert "avbook " + " ".join(command) in call(*command, "--help")[1]
    loaded = "import sys, avbook.commands; print([each for each in ('torch', 'pandas', 'papermill') if each in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "[]\n"


def test_ctrl_c_and_then_the_same_command(book):
    command = ["sweep", book/"1_saliency"/"18_train.ipynb", "-g", "n_steps=1,60", "--workers", "1"]
    process = started(*command)
    finished = book.parent/"artifacts"/"runs"/"18_train"
    end = time.monotonic() + 60
    while not (list(finished.glob("*[0-9a-f]/record.json")) and list(finished.glob("*.partial/checkpoints"))):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(.1)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)   # as Ctrl-C
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("avbook: stopped; nothing finished is lost, the same command goes on\n"), errors
    assert kernels and not psutil.wait_procs(kernels, timeout=10)[1]   # none is left behind
    assert list(finished.glob("*.partial/checkpoints"))
    [record] = finished.glob("*[0-9a-f]/record.json")
    before = record.read_text()
    code, output, errors = call(*command[:3], "n_steps=1", "--workers", "1")
    assert code == 0 and record.read_text() == before
    assert "done" in call("runs")[1] and "to do" in call("runs")[1]


def test_the_workbook_does_only_what_changed_and_tells_of_failures(book):
    bad = write_notebook(book/"2_classification"/"28_train.ipynb", body='raise ValueError("no <good>")\nwrite_record()')
    write_notebook(book/"4_results"/"41_tables.ipynb", 'runs: str = ""  # folder\nprofile: str = "paper"  # one', TABLES)
    write_notebook(book/"0_core"/"06_fit.ipynb", body="print('no experiment')")
    command = ("workbook", "--profile", "smoke", "--notebooks", book)
    code, output, errors = call(*command)
    site = book.parent/"artifacts"/"workbook"
    assert code == 1 and f"the workbook: {site/'index.html'}\n" in output
    assert "28_train" in errors and "no <good>" in errors and re.search("1 (done|failed), 1 to go", errors)
    assert "1 done, 1 failed" in (site/"index.html").read_text()
    [failed] = (site/"runs").glob("28_train-*.html")
    assert "no &lt;good&gt;" in failed.read_text()
    [done] = (site/"runs").glob("18_train-*.html")
    assert "<video" in done.read_text() and "Experiment 18_train" in done.read_text()
    assert "a table of 1" in (site/"4_results"/"41_tables.html").read_text()

    write_notebook(bad, body=BODY)
    code, output, errors = call(*command)
    assert code == 0 and "1 to go" in errors
    assert "2 done" in (site/"index.html").read_text()
    begun = {path: path.read_text() for path in (book.parent/"artifacts"/"runs").rglob("run.json")}
    assert len(begun) == 3                         # two that are done, and the old key of the one that was bad
    assert call(*command)[0] == 0
    assert begun == {path: path.read_text() for path in (book.parent/"artifacts"/"runs").rglob("run.json")}
    assert {json.loads(text)["name"] for text in begun.values()} == {"18_train.ipynb", "28_train.ipynb"}
