"""GAP@20 beside the starter kit's heap, and a million videos in how much memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/classification_metrics.py [videos] [rounds]
"""
import heapq
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from avbook.classification.metrics import Tally, gap


def heap_gap(scores, labels):
    "As the starter kit does it: each prediction a tuple on a heap, a seeded shuffle, a sort, a loop; (videos, 20)."
    heap, n_positives = [], int(labels.sum())
    for score, label in zip(scores.ravel(), labels.ravel(), strict=True): heapq.heappush(heap, (score, label))
    pooled, actual = np.array(list(zip(*heap, strict=True)))
    random.seed(0)
    shuffled = random.sample(range(len(pooled)), len(pooled))
    pooled, actual = pooled[shuffled], actual[shuffled]
    found, total = 0., 0.
    for rank, place in enumerate(sorted(range(len(pooled)), key=lambda place: pooled[place], reverse=True), 1):
        if actual[place] > 0:
            found += 1
            total += found/rank/n_positives
    return total


def predictions(n_videos, seed=0):
    "Twenty scores a video, all different, the higher ones hitting more often."
    draw = np.random.default_rng(seed)
    scores = draw.random((n_videos, 20))
    return scores, draw.random(scores.shape) < scores**3


def seconds(work, rounds):
    "The processor time of the fastest of a few calls, and what it returns."
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        result = work()
        best = min(best, time.process_time() - began)
    return best, result


def peak_of_many(n_videos=1_000_000, num_classes=40):
    "Stream videos into a tally and compute all metrics: the peak of this process in MB, its imports included."
    draw, tally = torch.Generator().manual_seed(0), Tally(num_classes)
    for _ in range(n_videos//2000):
        scores = torch.rand(2000, num_classes, generator=draw)**8
        tally.update(scores, torch.rand(2000, num_classes, generator=draw) < scores)
    tally.compute()
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])/1024


def main():
    n_videos, rounds = map(int, (sys.argv[1:] + ["200000", "1"][len(sys.argv) - 1:]))
    peak = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True).stdout
    print(f"a million videos: {float(peak):.0f} MB at the peak, Python and PyTorch included")
    scores, labels = predictions(n_videos)
    ours, value = seconds(lambda: gap(scores, labels), max(3, rounds))
    theirs, expected = seconds(lambda: heap_gap(scores, labels), rounds)
    print(f"GAP@20 of {n_videos:,} videos: heap {theirs:.2f} s, here {ours:.3f} s, {theirs/ours:.0f} times faster; "
          f"they differ by {abs(value - expected):.1e}")
    wide = torch.rand(1024, 4716)**30
    tally, labels = Tally(4716), torch.rand(1024, 4716) < 3.4/4716
    taken, _ = seconds(lambda: tally.update(wide, labels), 5)
    print(f"a tally takes {1024/taken:,.0f} videos of 4716 classes a second")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--memory" in sys.argv: print(peak_of_many())
    else: main()
