"""What two passes over a batch cost in time and memory: python tests/benchmarks/quality_two_pass.py

A batch of 64 clips in pieces of 8, by plain accumulation (which gives the gradient of another loss) and in two
passes; one piece alone; and the batch in one go. Memory is the peak of a process of its own, less what it held
before the step."""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from accelerate import Accelerator

from avbook.fit import accumulate_gradients
from avbook.quality.losses import BatchLoss, two_pass_gradients
from avbook.quality.model import SlowFastVQA

N_CLIPS, N_IN_PIECE = 64, 8
WAYS = {"one piece": (accumulate_gradients, N_IN_PIECE, N_IN_PIECE),
        "accumulated": (accumulate_gradients, N_CLIPS, N_IN_PIECE),
        "two passes": (two_pass_gradients, N_CLIPS, N_IN_PIECE),
        "in one go": (accumulate_gradients, N_CLIPS, N_CLIPS)}


def score(model, batch): return model(batch[0]).score, batch[1]


class Work:
    "A network, a batch, and the ways to a gradient."
    def __init__(self, preset, size, device):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=device == "cpu")
        self.model = SlowFastVQA.from_preset(preset, size=size).to(device)
        self.clips = torch.randint(256, (N_CLIPS, 3, 32, size, size), dtype=torch.uint8, device=device)
        self.opinion = torch.linspace(1, 5, N_CLIPS, device=device)

    def step(self, way):
        "Seconds of one gradient."
        step, n_clips, n_in_piece = WAYS[way]
        pieces = list(zip(self.clips[:n_clips].split(n_in_piece), self.opinion[:n_clips].split(n_in_piece),
                          strict=True))
        self.model.zero_grad()
        clock = time.perf_counter if self.clips.is_cuda else time.process_time
        began = clock()
        step(self.model, pieces, BatchLoss(score), self.accelerator)
        if self.clips.is_cuda: torch.cuda.synchronize()
        return clock() - began


def peak(work, way):
    "MB that a step needs beyond what was there before it."
    if work.clips.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.step(way)
        return (torch.cuda.max_memory_allocated() - before)/1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work.step(way)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)*1024/1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--size", type=int, default=56, help="px of a frame's side")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--n-rounds", type=int, default=3, help="of timing, the ways in turn")
    parser.add_argument("--peak-of", choices=WAYS, help="print one way's peak only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak_of:
        print(peak(Work(given.preset, given.size, given.device), given.peak_of))
        return
    asked = [f"--{name}={getattr(given, name)}" for name in ("preset", "size", "device")]
    thrifty = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    told = lambda way: subprocess.run([sys.executable, __file__, *asked, f"--peak-of={way}"], check=True, text=True,
                                      capture_output=True, env=thrifty).stdout
    peaks = {way: float(told(way)) for way in WAYS}
    work, timed = Work(given.preset, given.size, given.device), ("accumulated", "two passes")
    work.step("one piece") # warms up
    seconds = {way: [] for way in timed}
    for _ in range(given.n_rounds):
        for way in timed: seconds[way].append(work.step(way))
    for way, value in peaks.items(): print(f"peak memory, {way:12s} {value:8.0f} MB")
    print(f"memory, two passes / one piece  {peaks['two passes']/peaks['one piece']:.2f}")
    print(f"memory, two passes / accumulated {peaks['two passes']/peaks['accumulated']:.2f}")
    print(f"memory, in one go / two passes  {peaks['in one go']/peaks['two passes']:.2f}")
    ratios = [two/one for one, two in zip(*seconds.values(), strict=True)]
    print("time, two passes / accumulated  " + ", ".join(f"{ratio:.2f}" for ratio in ratios)
          + f"; median {statistics.median(ratios):.2f}")


if __name__ == "__main__": main()
