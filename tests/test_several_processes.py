"""Two processes that each take half of a batch, against one that takes the whole: the same losses and the same updates."""
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch

from avbook.classification.metrics import multi_label_loss
from avbook.classification.model import build_model
from avbook.fit import FitConfig, fit, load_history
from avbook.quality.losses import BatchLoss, two_pass_gradients
from avbook.quality.model import SlowFastVQA
from avbook.saliency.losses import saliency_loss
from avbook.saliency.model import AVRSP, Design

N_STEPS, BATCH_SIZE = 3, 8


class Samples:
    "Drawn from their number: whoever asks for a sample gets the same."
    def __init__(self, make, n_samples=24): self.make, self.n_samples = make, n_samples
    def __len__(self): return self.n_samples
    def __getitem__(self, index): return self.make(torch.Generator().manual_seed(index), index)


def saliency():
    design = Design(width=1/16, n_frames=8, size=(32, 48), n_samples=6000, audio_encoder="log_mel", n_heads=2,
                    fusion_width=64, dropout=0.)
    def make(generator, _):
        frames = torch.randint(256, (3, 8, 32, 48), dtype=torch.uint8, generator=generator)
        return dict(frames=frames, waveform=torch.randn(6000, generator=generator),
                    density=torch.rand(32, 48, generator=generator))
    def loss(model, batch): return saliency_loss(model(batch["frames"], batch["waveform"]), batch["density"])
    return AVRSP(design), Samples(make), loss, {}


def classification():
    network = build_model("Attend-Fusion", 12, hidden=32, dropout=0., fc_norm="batch")
    def make(generator, _):
        rows = {name: torch.randn(4, width, generator=generator) for name, width in (("audio", 128), ("visual", 1024))}
        return dict(rows, mask=torch.ones(4, dtype=torch.bool), labels=torch.rand(12, generator=generator) < .2)
    def loss(model, batch): return multi_label_loss(model(batch["audio"], batch["visual"], batch["mask"]), batch["labels"])
    return network, Samples(make), loss, {}


def quality():
    small = dict(depths=(1, 1), slow_width=16, fast_width=8, slow_heads=(2, 4), fast_heads=(1, 2), window=(4, 4, 4))
    network = SlowFastVQA.from_preset("nano", **small, n_frames=8, size=16, drop_rate=0., dropout=0.)
    def make(generator, index):
        spread = .1*(1 + index % 7)
        return dict(frames=.5 + spread*(torch.rand(3, 8, 16, 16, generator=generator) - .5), opinion=torch.tensor(spread))
    loss = BatchLoss(lambda model, batch: (model(batch["frames"]).score, batch["opinion"]))
    return network, Samples(make), loss, dict(step=two_pass_gradients)


PAPERS = dict(saliency=saliency, classification=classification, quality=quality)


def train(paper, folder, rank=None, port=None):
    "What a process does; with a rank, one of two."
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if rank is not None:
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.manual_seed(0)
    model, samples, loss, how = PAPERS[paper]()
    model.double()
    config = FitConfig(n_steps=N_STEPS, batch_size=BATCH_SIZE if rank is None else BATCH_SIZE//2, peak_lr=1e-3)
    fit(model, samples, loss, config, folder, progress="off", **how)
    torch.save(model.state_dict(), folder/f"{rank or 0}.pt")


def started(paper, folder, **given):
    "A process of its own, forked from one that has imported everything."
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_several_processes", "torch._dynamo"])
    process = context.Process(target=train, args=(paper, folder), kwargs=given)
    process.start()
    return process


def apart(one, other):
    "The most that any weight, running statistic or logged number differs; relative to the log's numbers where these are large."
    weights = [torch.load(folder/"0.pt") for folder in (one, other)]
    moved = {name: (weights[0][name].double() - weights[1][name].double()).abs().max().item() for name in weights[0]}
    logs = [load_history(folder).drop(columns=["kind", "step", "epoch", "seconds"]) for folder in (one, other)]
    np.testing.assert_equal(logs[0].shape, logs[1].shape)
    relative = ((logs[0] - logs[1]).abs()/logs[0].abs().clip(lower=1)).max().to_dict()
    return moved, relative


@pytest.mark.parametrize("paper", PAPERS)
def test_two_processes_learn_what_one_learns(paper, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe: port = probe.getsockname()[1]
    processes = [started(paper, tmp_path/"two", rank=rank, port=port) for rank in (0, 1)]
    processes.append(started(paper, tmp_path/"one"))
    for process in processes: process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    moved, relative = apart(tmp_path/"one", tmp_path/"two")
    both = [torch.load(tmp_path/"two"/f"{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0]), "the two processes disagree"
    print(f"{paper}: weights and statistics apart by {max(moved.values()):.1e} ({max(moved, key=moved.get)}), "
          f"losses and gradients' length by {max(relative.values()):.1e}")
    assert max(moved.values()) < 1e-6
    assert max(relative.values()) < 1e-6
