"""How fast YouTube-8M records are read, beside the `tfrecord` package and what training consumes: ratios of one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/classification_records.py [rounds]

`tfrecord` is not among the project's packages; where it is not installed, the comparison with it is left out.
Attend-Fusion takes its steps at the paper's widths where there is a GPU, at a width of 256 where there is none.
"""
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from avbook.classification.data import MapBatches, convert
from avbook.classification.metrics import multi_label_loss
from avbook.classification.model import build_model
from avbook.classification.records import WIDTHS, Record, read_records, write_records

CONTEXT = {"id": "byte", "labels": "int"}


def write_shards(folder):
    "5,000 videos at video level and 300 at frame level (230 steps), as in the official files."
    draw = np.random.default_rng(0)
    def labels(): return np.sort(draw.choice(3862, 3, replace=False))
    def means(): return [draw.normal(size=width).astype(np.float32) for width in WIDTHS.values()]
    def steps(): return [draw.integers(0, 256, (230, width), np.uint8) for width in WIDTHS.values()]
    write_records(folder/"video.tfrecord", (Record(f"{n:04}", labels(), *means()) for n in range(5000)))
    write_records(folder/"frame.tfrecord", (Record(f"{n:04}", labels(), *steps()) for n in range(300)))


def ours(path): return sum(1 for _ in read_records(path, 3862))


def theirs(path):
    "The same by the `tfrecord` package, which checks no checksum."
    from tfrecord.reader import tfrecord_loader
    if "video" in path.name:
        context,steps = CONTEXT | {f"mean_{name}": "float" for name in WIDTHS},None
    else: context,steps = CONTEXT,dict.fromkeys(WIDTHS, "byte")
    return sum(1 for _ in tfrecord_loader(str(path), None, context, sequence_description=steps))


def batched(path):
    "Parsed into batches of features, which is what a map is there to save."
    records = list(read_records(path, 3862))
    for start in range(0, len(records), 1024):
        group = records[start:start + 1024]
        np.hstack([np.stack([record.rgb for record in group]), np.stack([record.audio for record in group])])
    return len(records)


def gathered(records): return sum(len(batch["id"]) for batch in MapBatches(records, 1024, drop_last=False))


def speeds(ways, n_rounds):
    "Records per CPU second of each way, the best of interleaved rounds."
    best = dict.fromkeys(ways, 0.)
    for _ in range(n_rounds):
        for name,(work,argument) in ways.items():
            began = time.process_time()
            n_records = work(argument)
            best[name] = max(best[name], n_records/(time.process_time() - began))
    return best


def trainer(num_classes=3862):
    "One step of Attend-Fusion on a batch, finished when it returns; and what it runs on."
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = {} if device == "cuda" else dict(hidden=256)
    model = build_model("Attend-Fusion", num_classes=num_classes, **width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    def step(batch):
        audio,visual,labels = [batch[name].to(device) for name in ("audio", "visual", "labels")]
        loss = multi_label_loss(model(audio, visual), labels)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        return loss.item()
    return step, torch.cuda.get_device_name() if device == "cuda" else "CPU, width 256"


def training(mapped):
    "Videos per second: of the loader alone, of steps on one batch again and again, and of both together."
    step,device = trainer()
    batches = MapBatches(mapped, 1024)
    same = next(iter(batches))
    for _ in range(2): step(same)
    ways = {"loader alone": lambda: [None for _ in batches],
            "steps alone": lambda: [step(same) for _ in range(len(batches))],
            "loader and steps": lambda: [step(batch) for batch in batches]}
    took = dict.fromkeys(ways, float("inf"))
    for _ in range(3):
        for name,work in ways.items():
            began = time.perf_counter(); work()
            took[name] = min(took[name], time.perf_counter() - began)
    print(f"Attend-Fusion, batches of 1024, on {device}: videos per second")
    for name,each in took.items(): print(f"  {name}: {1024*len(batches)/each:.0f}")
    print(f"loader and steps / steps alone: {took['loader and steps']/took['steps alone']:.2f} times the time")


def main(n_rounds=5):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_shards(folder)
        video,frame = folder/"video.tfrecord",folder/"frame.tfrecord"
        mapped = convert([video]*4, folder/"map", 3862, show_progress=False)
        ways = {"video level, avbook": (ours, video), "video level, in batches": (batched, video),
                "frame level, avbook": (ours, frame), "memory map, shuffled batches": (gathered, mapped)}
        if find_spec("tfrecord"):
            ways |= {"video level, tfrecord": (theirs, video), "frame level, tfrecord": (theirs, frame)}
        else: print("no comparison with tfrecord, which is not installed (keep it out of the project's environment)")
        found = speeds(ways, n_rounds)
        training(mapped)
    print(pd.Series(found, name="records per CPU second").round().astype(int).to_string())
    for fast,slow,wanted in (("video level, avbook", "video level, tfrecord", 1.5),
                             ("frame level, avbook", "frame level, tfrecord", 1.8),
                             ("memory map, shuffled batches", "video level, avbook", 4),
                             ("memory map, shuffled batches", "video level, in batches", 4)):
        if slow in found: print(f"{fast} / {slow}: {found[fast]/found[slow]:.2f} (wanted: {wanted})")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
