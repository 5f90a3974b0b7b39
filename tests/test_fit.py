"""Runs that are killed, stopped and resumed, each sitting in a process of its own."""
import multiprocessing
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from avbook.fit import FitConfig, fit, load_history

N_STEPS = 120
RECIPE = dict(n_steps=N_STEPS, batch_size=4, n_accumulated=2, drop_last=False, peak_lr=.01, schedule="cosine",
              n_warmup_steps=10, clip_norm=1., evaluate_every=25, save_every=7, log_every=3, metric="error")


class NoisyWaves:
    "Waves whose pitch is to be told; each time they come with other noise."
    def __len__(self): return 62
    def __getitem__(self, index):
        time.sleep(.0005)
        wave = torch.sin(torch.arange(32)*(index + 1)/62) + .3*torch.randn(32)
        return dict(id=f"wave{index}", wave=wave[None], pitch=torch.tensor([index/62 + random.gauss(0, .01)]))


def network(is_plain=False):
    torch.manual_seed(0)
    if is_plain: return nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))
    return nn.Sequential(nn.Conv1d(1, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Flatten(),
                         nn.Linear(8*28, 16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 1))


def loss(model, batch): return F.mse_loss(model(batch["wave"]), batch["pitch"])
def error(model): return dict(error=sum(loss(model, {name: each[None] for name, each in NoisyWaves()[index].items()
                                                     if name != "id"}).item() for index in range(0, 62, 8)))


def train(folder, is_plain=False, **given):
    config = FitConfig(**{**RECIPE, **given})
    return fit(network(is_plain), NoisyWaves(), loss, config, folder, error, progress="off")


def train_here_alone(folder, dies_in_save=0, rank=None, port=None, **given):
    "What the process of a sitting does."
    multiprocessing.set_start_method("fork", force=True) # of loader workers: these end with their parent
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if dies_in_save: die_in_save(dies_in_save)
    if rank is not None: join_pair(rank, port)
    train(folder, **given)


def join_pair(rank, port):
    "What a launcher tells each process."
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def die_in_save(number):
    "Kill this process when the optimiser of checkpoint `number` is half written."
    whole, calls = torch.save, iter(range(1, 1000))
    def save(state, path):
        whole(state, path)
        if next(calls) == number:
            os.truncate(path, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    torch.save = save


def sitting(folder, **given):
    "Start a sitting in a process of its own, forked from one that has imported everything."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["avbook.fit", "torch._dynamo"])
    process = context.Process(target=train_here_alone, args=(folder,), kwargs=given)
    process.start()
    return process


def ended(process):
    process.join(timeout=120)
    return process.exitcode


def finish(folder, **given): assert ended(sitting(folder, **given)) == 0


def n_lines(folder):
    log = folder/"metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def interrupt(folder, step, number, **given):
    "Send a signal soon after the given step was logged; return the step at which the run stood on disk."
    process = sitting(folder, **given)
    send_at(folder, step, process, number)
    assert ended(process) == -number
    return saved_step(folder)


def send_at(folder, step, process, number):
    while n_lines(folder) < step//3 and process.is_alive(): time.sleep(.001)
    time.sleep(random.uniform(0, .02))
    os.kill(process.pid, number)


def saved_step(folder): return int(max((folder/"checkpoints").glob("step_*")).name.removeprefix("step_"))


def assert_same_run(folder, other):
    "Weights, optimiser, generators and log, all to the last bit; only the clock may differ."
    assert saved_step(folder) == saved_step(other) == N_STEPS
    for name in (f"step_{N_STEPS:08d}/model.safetensors", "best.safetensors"):
        one, two = (load_file(each/"checkpoints"/name) for each in (folder, other))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    states = [torch.load(each/"checkpoints"/f"step_{N_STEPS:08d}"/"state.pt") for each in (folder, other)]
    for state in states: del state["state"]["seconds"], state["state"]["n_bytes"]
    assert str(states[0]) == str(states[1])
    logs = [load_history(each).drop(columns="seconds") for each in (folder, other)]
    assert logs[0].equals(logs[1])


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    "A run that nobody disturbed."
    folder = tmp_path_factory.mktemp("fit")/"untouched"
    finish(folder)
    return folder


def test_killed_at_five_random_steps_and_resumed(untouched, tmp_path):
    steps = sorted(random.sample(range(5, N_STEPS - 30), 5))
    saved = [interrupt(tmp_path/"run", step, signal.SIGKILL, n_workers=number % 2) for number, step in enumerate(steps)]
    finish(tmp_path/"run")
    print(f"killed soon after steps {steps}, resumed from {saved}")
    assert_same_run(tmp_path/"run", untouched)


def test_stopped_by_sigterm_then_killed_in_the_middle_of_saving(untouched, tmp_path):
    folder = tmp_path/"run"
    step = interrupt(folder, 40, signal.SIGTERM)
    logged = load_history(folder).step.max()
    assert logged <= step < logged + 3, "the step under way was not saved"
    assert ended(sitting(folder, dies_in_save=3)) == -signal.SIGKILL
    assert any(".part." in path.name for path in (folder/"checkpoints").iterdir()), "nothing was half written"
    assert saved_step(folder) > step
    (folder/"metrics.jsonl").open("a").write('{"loss": 0.1, "ki')       # a line cut short
    finish(folder)
    assert_same_run(folder, untouched)
    assert not any(".part." in path.name for path in (folder/"checkpoints").iterdir())


def pair(folder, **given):
    "Start two processes that train one model."
    with socket.create_server(("127.0.0.1", 0)) as probe: port = probe.getsockname()[1]
    return [sitting(folder, rank=rank, port=port, **given) for rank in (0, 1)]


def test_two_processes_take_the_steps_of_one(tmp_path):
    ended_well = [ended(process) for process in pair(tmp_path/"two", is_plain=True)]
    finish(tmp_path/"one", is_plain=True, batch_size=8)
    assert ended_well == [0, 0]
    one, two = (load_file(tmp_path/name/"checkpoints"/f"step_{N_STEPS:08d}"/"model.safetensors") for name in ("one", "two"))
    for name in one: torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)


def test_one_of_two_processes_is_stopped_and_both_resume(tmp_path):
    assert [ended(process) for process in pair(tmp_path/"calm")] == [0, 0]
    first, second = pair(tmp_path/"stopped")
    send_at(tmp_path/"stopped", 40, second, signal.SIGTERM)
    assert (ended(first), ended(second)) == (1, -signal.SIGTERM)    # the first ends with a KeyboardInterrupt
    assert 36 <= saved_step(tmp_path/"stopped") < N_STEPS
    assert [ended(process) for process in pair(tmp_path/"stopped")] == [0, 0]
    assert_same_run(tmp_path/"stopped", tmp_path/"calm")


def test_handlers_are_given_back_and_a_thread_may_train(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    short = dict(n_steps=2, n_warmup_steps=0)
    train(tmp_path/"main", **short)
    with pytest.raises(ZeroDivisionError):
        fit(network(), NoisyWaves(), lambda model, batch: 1/0, FitConfig(n_steps=2), tmp_path/"fails", progress="off")
    with ThreadPoolExecutor(1) as threads: state = threads.submit(train, tmp_path/"thread", **short).result()
    assert state.reason == "finished"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
