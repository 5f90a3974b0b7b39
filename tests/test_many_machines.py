"""Sweeps on a cluster: workers that are killed, runs that ask for a GPU, SLURM's job as the page has it, a store."""
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from avbook.cluster import cluster_executor, slurm_settings
from avbook.runs import load_records, plan, run_jobs

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore")

PARAMETERS = """\
profile: str = "quick"  # one of: smoke, quick
seed: int = 0           # of nothing, at least 0
n_steps: int = 3        # of 0.2 seconds each
"""
BODY = """\
import os
import time
from avbook.records import run_folder, write_record

with open("executions.txt", "a") as file: file.write(f"begun {seed}\\n")
steps = run_folder()/"checkpoints"/"steps.txt"
steps.parent.mkdir(exist_ok=True)
n_before = len(steps.read_text().split()) if steps.exists() else 0
for step in range(n_before, n_steps):
    time.sleep(.2)
    with open(steps, "a") as file: file.write(f"{step}\\n")
"""
RECORD = """\
write_record([dict(metric="n_before", value=n_before, n=n_steps, worker=os.getppid())],
             dict(profile=profile, seed=seed, n_steps=n_steps))
with open("executions.txt", "a") as file: file.write(f"ended {seed}\\n")
"""


@pytest.fixture
def notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, BODY, RECORD)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/"steps.ipynb")
    return tmp_path/"steps.ipynb"


def executions(notebook, what):
    "How often each seed's notebook was begun, or ended."
    lines = (notebook.parent/"executions.txt").read_text().split("\n")
    return Counter(int(line.split()[1]) for line in lines if line.startswith(what))


def holder_of(jobs):
    "A run that is under way, with the process that does it; waited for."
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for job in jobs:
            if job.state() == "running" and (job.partial/"checkpoints"/"steps.txt").exists():
                return job, json.loads((job.partial/"run.json").read_text())["process"]
        time.sleep(.05)
    raise AssertionError("no run has begun")


def test_one_of_three_workers_is_killed_and_every_run_is_done_once(notebook, tmp_path):
    struck = {}
    with (distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
          cluster_executor(cluster.scheduler_address) as executor):
        jobs = plan(notebook, [dict(seed=seed, n_steps=15) for seed in range(6)], tmp_path/"runs", executor)

        def strike():
            struck["job"], process = holder_of(jobs)
            os.kill(process, signal.SIGKILL)

        thread = threading.Thread(target=strike)
        thread.start()
        table = run_jobs(jobs, executor)
        thread.join()
    seed = struck["job"].parameters["seed"]
    begun, ended = executions(notebook, "begun"), executions(notebook, "ended")
    print(f"the worker of seed {seed} was killed; begun {dict(begun)}, ended {dict(ended)}\n{table.drop(columns='key')}")
    assert table.state.tolist() == ["done"]*6
    assert ended == dict.fromkeys(range(6), 1)
    assert begun == dict.fromkeys(range(6), 1) | {seed: 2}
    record = struck["job"].record()
    assert record["is_resumed"] and 0 < record["metrics"][0]["value"] < 15
    for job in jobs: assert (job.folder/"checkpoints"/"steps.txt").read_text().split() == [*map(str, range(15))]
    assert sorted(load_records(tmp_path/"runs").seed) == [*range(6)]
    assert not [*(tmp_path/"runs").rglob("*.partial")] and not [*(tmp_path/"runs").rglob("*.part.*")]


def test_runs_that_ask_for_a_gpu_go_where_one_is_offered(notebook, tmp_path):
    plain = dict(cls=distributed.Nanny, options=dict(nthreads=1))
    with_gpu = dict(cls=distributed.Nanny, options=dict(nthreads=2, resources=dict(GPU=1)))
    scheduler = dict(cls=distributed.Scheduler, options=dict(dashboard_address=None))
    cluster = distributed.SpecCluster({0: plain, 1: with_gpu}, scheduler)
    with cluster, cluster_executor(cluster.scheduler_address, n_gpus=1) as executor:
        cluster.wait_for_workers(2)
        able = executor.submit(os.getpid).result()
        table = run_jobs(plan(notebook, [dict(seed=seed) for seed in range(3)], tmp_path/"runs", executor), executor)
        with pytest.raises(ValueError, match="a run asks for GPU: 2, but of the 2 workers of .* the best offers 1"):
            with cluster_executor(cluster.scheduler_address, n_gpus=2): pass
    assert table.state.tolist() == ["done"]*3
    notes = [json.loads(path.read_text()) for path in (tmp_path/"runs").glob("*/*/run.json")]
    assert {note["process"] for note in notes} == {able}
    times = sorted((note["started"], json.loads((path/"record.json").read_text())["written"])
                   for note in notes for path in (tmp_path/"runs"/"steps").glob(f"{note['key'][:16]}"))
    assert all(first[1] <= second[0] for first, second in zip(times, times[1:], strict=False))   # one GPU, one run


def page(root):
    cells = nbformat.read(root/"nbs"/"0_core"/"08_cluster.ipynb", 4).cells
    [script] = [match[1] for cell in cells if (match := re.search(r"```bash\n(#!.*?)```", cell.source, re.S))]
    [settings] = [cell.source for cell in cells if cell.source.startswith("settings = slurm_settings(")]
    return script, eval(settings.splitlines()[0].partition("=")[2], dict(slurm_settings=slurm_settings))


def test_the_script_on_the_page_is_one_that_a_shell_can_read(root, tmp_path):
    script, settings = page(root)
    (tmp_path/"job.sh").write_text(script)
    assert subprocess.run(["bash", "-n", tmp_path/"job.sh"]).returncode == 0
    command = script.strip().splitlines()[-1]
    assert " ".join(settings["worker_extra_args"]) in command and f"--nthreads {settings['cores']}" in command
    assert {f"#SBATCH {line}" for line in settings["job_extra_directives"]} <= {*script.splitlines()}


def test_the_job_that_is_generated_is_the_one_on_the_page(root):
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed: pip install avbook[cluster]")
    script, settings = page(root)
    with jobqueue.SLURMCluster(**settings, scheduler_options=dict(dashboard_address=None)) as cluster:
        generated = cluster.job_script().replace(sys.executable, "PYTHON").replace(cluster.scheduler_address, "SCHEDULER")
    assert generated.split() == script.split()


@pytest.fixture
def queue(tmp_path, monkeypatch):
    "Commands named as SLURM's, that start a job at once and on this machine."
    folder = tmp_path/"bin"
    folder.mkdir()
    (folder/"sbatch").write_text(   # as SLURM's, it takes the script away with it: the file is gone in a moment
        '#!/bin/bash\nscript=$(<"$1")\nsetsid bash -c "$script" > /dev/null 2>&1 &\necho "Submitted batch job $!"\n')
    (folder/"scancel").write_text('#!/bin/bash\nkill -- "-$1"\n')
    for path in folder.iterdir(): path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_sweep_through_slurms_commands(notebook, tmp_path, queue):
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed: pip install avbook[cluster]")
    settings = slurm_settings(memory="2GB", n_cpus=1, walltime="01:00:00", log_folder=str(tmp_path/"slurm"))
    with jobqueue.SLURMCluster(**settings, scheduler_options=dict(dashboard_address=None)) as cluster:
        cluster.scale(jobs=1)
        with cluster_executor(cluster.scheduler_address, n_gpus=1, timeout=60) as executor:
            table = run_jobs(plan(notebook, [dict(seed=seed) for seed in range(2)], tmp_path/"runs", executor), executor)
    assert table.state.tolist() == ["done"]*2
    assert executions(notebook, "ended") == {0: 1, 1: 1}


def test_a_store_shares_runs_between_machines_without_a_common_folder(notebook, tmp_path, monkeypatch):
    from avbook.store import pull_runs, push_runs
    url = f"file://{tmp_path}/store"
    first = plan(notebook, [dict(seed=seed) for seed in range(2)], tmp_path/"here")
    assert run_jobs(first).state.tolist() == ["done"]*2
    assert len(push_runs(url, tmp_path/"here")) == 2
    second = plan(notebook, [dict(seed=seed) for seed in range(3)], tmp_path/"there")
    assert len(pull_runs(url, tmp_path/"there", [job.key for job in second])) == 2
    assert run_jobs(second).state.tolist() == ["done"]*3
    assert executions(notebook, "ended") == {0: 1, 1: 1, 2: 1}
    assert len(push_runs(url, tmp_path/"there")) == 1 and Path(second[0].folder/"record.json").exists()
