"""Runs that are killed, interrupted, doubled or out of time: what must never be lost and never be run twice."""
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import nbformat
import psutil
import pytest

from avbook.runs import ParameterError, RunFailed, load_records, plan, run, run_job, run_jobs, sweep

PARAMETERS = """\
profile: str = "quick"  # one of: smoke, quick
seed: int = 0           # of nothing, at least 0
n_steps: int = 3        # of 0.2 seconds each
wrong: str = "no"       # what goes wrong; one of: no, raise, exit, hang, forget
"""
BODY = """\
import os
import time
from pathlib import Path
from avbook.records import run_folder, write_record

with open("executions.txt", "a") as file: file.write(f"{seed}\\n")
if wrong == "raise": raise RuntimeError("this one cannot be done")
if wrong == "exit": os._exit(7)
if wrong == "hang": time.sleep(600)

steps = run_folder()/"checkpoints"/"steps.txt"
steps.parent.mkdir(exist_ok=True)
n_before = len(steps.read_text().split()) if steps.exists() else 0
for step in range(n_before, n_steps):
    time.sleep(.2)
    with open(steps, "a") as file: file.write(f"{step}\\n")
    print("step", step, flush=True)
"""
RECORD = """\
n_threads = int(os.environ["OMP_NUM_THREADS"])
if wrong != "forget":
    write_record([dict(metric="n_before", value=n_before, n=n_steps, caps=n_threads)], dict(profile=profile, seed=seed))
"""
SWEEPER = """\
import json
import sys
from avbook.runs import sweep
if __name__ == "__main__":
    notebook, runs, given = sys.argv[1:]
    sweep(notebook, json.loads(given), runs=runs, n_workers=2)
"""


def write_notebook(folder):
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, BODY, RECORD)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder/"steps.ipynb")
    return folder/"steps.ipynb"


@pytest.fixture
def notebook(tmp_path): return write_notebook(tmp_path)


def six(n_steps=3):
    return [dict(seed=seed, n_steps=n_steps, wrong="raise" if seed == 5 else "no") for seed in range(6)]


def executions(notebook):
    "How often each seed's notebook was begun."
    return Counter(map(int, (notebook.parent/"executions.txt").read_text().split()))


def kernels_of(folder):
    return [each for each in psutil.process_iter(["environ"])
            if (each.info["environ"] or {}).get("AVBOOK_RUN_FOLDER", "").startswith(str(folder))]


def wait_until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.05)


@contextmanager
def sweeper(notebook, runs, given):
    "A process of its own that sweeps, two runs at a time."
    command = [sys.executable, "-c", SWEEPER, str(notebook), str(runs), json.dumps(given)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try: yield process
    finally:
        process.kill()
        process.wait()


def test_a_sweep_killed_in_the_middle_does_only_what_is_missing(notebook, tmp_path):
    runs = tmp_path/"runs"
    jobs = plan(notebook, six(n_steps=16), runs)

    def n_done(job):
        steps = job.partial/"checkpoints"/"steps.txt"
        return len(steps.read_text().split()) if steps.exists() else 0

    def in_the_middle():   # far from the end
        return [job.state() for job in jobs].count("done") >= 2 and any(1 <= n_done(job) <= 6 for job in jobs)

    with sweeper(notebook, runs, six(n_steps=16)) as process:
        wait_until(in_the_middle)
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not kernels_of(runs))   # they go on for a second, before they see that nobody waits for them
    left = {job.key: n_done(job) for job in jobs}
    done = {job.key: (job.folder/"record.json").stat().st_mtime_ns for job in jobs if job.state() == "done"}
    begun = executions(notebook)

    table = run_jobs(jobs, n_workers=2)
    assert table.state.tolist() == ["done"]*5 + ["failed"]
    assert table.error[5] == "RuntimeError: this one cannot be done"
    assert "raise RuntimeError" in jobs[5].error.read_text()
    again = {seed: n - begun[seed] for seed, n in executions(notebook).items()}
    for job in jobs:
        seed = job.parameters["seed"]
        assert again[seed] == (0 if job.key in done else 1)
        if job.key in done: assert (job.folder/"record.json").stat().st_mtime_ns == done[job.key]
        if seed != 5: assert (job.folder/"checkpoints"/"steps.txt").read_text().split() == [*map(str, range(16))]
    interrupted = [job for job in jobs[:5] if begun[job.parameters["seed"]] and job.key not in done]
    n_before = {job.key: job.record()["metrics"][0]["value"] for job in interrupted}
    assert n_before == {job.key: left[job.key] for job in interrupted}   # each goes on exactly where it stopped
    assert any(0 < n < 16 for n in n_before.values())
    assert all(job.record()["is_resumed"] for job in interrupted if left[job.key])
    assert not kernels_of(runs)
    print(f"killed with {len(done)} of 6 done and {len(interrupted)} under way; then began {again}")
    print(table.drop(columns="key").to_string())


def test_two_sweeps_at_once_share_the_work(notebook, tmp_path):
    with sweeper(notebook, tmp_path/"runs", six(1)[:3]) as process:
        table = sweep(notebook, six(1)[:3], runs=tmp_path/"runs", n_workers=1)
        assert process.wait() == 0, process.stdout.read()
    assert table.state.tolist() == ["done"]*3
    assert executions(notebook) == {0: 1, 1: 1, 2: 1}


@pytest.mark.filterwarnings("ignore")
def test_the_same_sweep_on_a_dask_cluster(notebook, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
          distributed.Client(cluster) as client):
        table = sweep(notebook, six(1), client.get_executor(), tmp_path/"runs", n_workers=2)
        assert table.state.tolist() == ["done"]*5 + ["failed"]
        assert table.error[5] == "RuntimeError: this one cannot be done"
        assert sweep(notebook, six(1)[:5], client.get_executor(), tmp_path/"runs").state.eq("done").all()
    assert table.key.tolist() == [job.key[:16] for job in plan(notebook, six(1))]
    assert executions(notebook) == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    print(table.drop(columns="key").to_string())


def test_a_pool_of_processes_and_a_worker_that_dies(notebook, tmp_path):
    jobs = plan(notebook, [dict(seed=0), dict(seed=1, wrong="hang")], tmp_path/"runs")
    with ProcessPoolExecutor(1) as pool:
        assert run_jobs(jobs[:1], pool).state.tolist() == ["done"]
        [worker] = pool._processes
        future = pool.submit(run_job, jobs[1])
        wait_until(lambda: jobs[1].state() == "running" and kernels_of(jobs[1].partial))
        os.kill(worker, signal.SIGKILL)
        assert future.exception()
        wait_until(lambda: not kernels_of(jobs[1].partial), seconds=10)   # the kernel notices by itself
    assert jobs[1].state() == "to do"


def test_what_can_go_wrong_is_told_in_a_line(notebook, tmp_path):
    jobs = plan(notebook, [dict(wrong=wrong) for wrong in ("exit", "forget", "hang")], tmp_path/"runs")
    table = run_jobs(jobs[:2], n_workers=2)
    assert [line[:28] for line in table.error] == ["the kernel died: out of memo", "the notebook came to its end"]
    table = run_jobs(jobs[2:], time_limit=4)
    assert table.error.tolist() == ["its 4 seconds are over"]
    assert [job.state() for job in jobs] == ["failed"]*3 and not kernels_of(tmp_path)


def test_odd_folders_live_log_and_force(tmp_path, capsys):
    folder = tmp_path/"a {strange} folder, säglich"
    folder.mkdir()
    notebook = write_notebook(folder)
    record = run(notebook, dict(seed=3), folder/"runs")
    assert record["metrics"][0]["caps"] >= 1 and record["profile"] == "quick" and record["seed"] == 3
    assert "step 0\nstep 1\nstep 2\n" in capsys.readouterr().out
    [job] = plan(notebook, [dict(seed=3)], folder/"runs")
    assert (job.folder/"log.txt").read_text().startswith("step 0\nstep 1\nstep 2\n")
    assert run(notebook, dict(seed=3), folder/"runs") == record
    forced = run(notebook, dict(seed=3), folder/"runs", force=True)
    assert forced["written"] >= record["written"] and forced["metrics"][0]["value"] == 0   # from the beginning
    with pytest.raises(RunFailed, match="its 0.1 seconds are over"):
        run(notebook, dict(seed=3), folder/"runs", force=True, time_limit=.1)
    assert job.record() == forced                                    # a result stands until a better one is whole
    assert load_records(folder/"runs").seed.tolist() == [3]
    executed = json.loads((job.folder/"steps.ipynb").read_text())
    assert executed["metadata"]["papermill"]["parameters"] == job.parameters


def test_nothing_starts_with_wrong_parameters(notebook, tmp_path):
    with pytest.raises(ParameterError, match=r"no parameter n_stps \(did you mean n_steps\?\); seed is 'one'"):
        sweep(notebook, [dict(seed=1), dict(n_stps=3, seed="one")], runs=tmp_path/"runs")
    assert not (tmp_path/"executions.txt").exists()
