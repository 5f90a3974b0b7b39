"""What scheduling costs by itself: python tests/benchmarks/scheduler.py [--runs 2000] [--cluster]

Runs of which only the kernel is left out: planned, handed to an executor, locked, checked against the code, written to a
folder that is renamed into place, read back. By threads of one process or, with --cluster, by a Dask scheduler and two
workers, each a process of its own. Beside the wall clock stands the time of the processor, which other work on the machine does
not lengthen; of a cluster, that of the process with the scheduler and the sweep. The memory is this process's (resident), before
and after."""
import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import nbformat
import psutil

from avbook import runs

PARAMETERS = 'profile: str = "quick"  # one of: smoke, quick\nseed: int = 0           # of nothing\n'


def megabytes(process=None): return round((process or psutil.Process()).memory_info().rss/2**20)


def leave_a_record(job, *_):
    "What a kernel would leave behind."
    record = dict(key=job.key, notebook=job.name, profile="quick", commit="", seconds=0., device="cpu", parameters=job.parameters,
                  metrics=[dict(metric="nothing", value=job.parameters["seed"], n=1)])
    (job.partial/"record.json").write_text(json.dumps(record))


def mocked_run_job(job, **given):
    "All of a run but its kernel, in whatever process this is: in this one the real function has another name."
    runs._run = leave_a_record
    return getattr(runs, "real_run_job", runs.run_job)(job, **given)


def swept(notebook, n_runs, folder, executor=None):
    "Seconds to plan and to run, by the clock, and of this process's processor to do both."
    began,worked = time.perf_counter(),time.process_time()
    jobs = runs.plan(notebook, [dict(seed=seed) for seed in range(n_runs)], folder, executor)
    planned = time.perf_counter()
    table = runs.run_jobs(jobs, executor, n_workers=2)
    ended = time.perf_counter()
    assert (table.state == "done").all() and len(runs.load_records(folder)) == n_runs
    return planned - began, ended - planned, time.process_time() - worked


def told(what, n_runs, seconds, before, after):
    planned, ran, worked = (1000*each/n_runs for each in seconds)
    print(f"{what}: {n_runs} runs, {planned:.1f} ms each to plan, {ran:.1f} ms each to run, "
          f"{worked:.1f} ms of processor, memory {before} → {after} MB", flush=True)


def main(n_runs, is_cluster):
    runs.real_run_job, runs.run_job = runs.run_job, mocked_run_job
    with tempfile.TemporaryDirectory() as place:
        first = nbformat.v4.new_code_cell(PARAMETERS, metadata=dict(tags=["parameters"]))
        notebook = Path(place)/"mocked.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell("pass")]), notebook)
        if is_cluster: return on_cluster(notebook, n_runs, f"{place}/cluster")
        for number in dict.fromkeys((n_runs//10, n_runs)):
            before = megabytes()
            told("threads", number, swept(notebook, number, f"{place}/threads-{number}"), before, megabytes())


def on_cluster(notebook, n_runs, folder):
    import dask
    from distributed import Client, LocalCluster
    dask.config.set({"distributed.comm.timeouts.tcp": "300s"})   # a busy machine answers late
    with (LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client):
        before = megabytes()
        seconds = swept(notebook, n_runs, folder, client.get_executor())
        told("cluster, scheduler's and sweep's process", n_runs, seconds, before, megabytes())
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        print(f"workers: {', '.join(f'{megabytes(each)} MB' for each in workers)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--cluster", action="store_true", help="by a Dask scheduler instead of threads")
    given = parser.parse_args()
    main(given.runs, given.cluster)
