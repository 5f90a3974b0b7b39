"""What one training step of the full network takes, in time and memory: python tests/benchmarks/saliency_training.py

32 frames of 224x384, width 1, by `fit`, fed from a generated film by `TrainingWindows`; in single precision and bfloat16,
with and without computing activations twice. Each way has a process of its own, so that the most memory is its own. A way
that would leave the machine too little memory is given up. Where there is a GPU, the same on it, and for what share of the
time it waits for data: what a step takes longer than with windows ready in memory.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from avbook.fit import FitConfig, accumulate_gradients, fit
from avbook.saliency.data import Watched
from avbook.saliency.losses import saliency_loss
from avbook.saliency.model import AVRSP, Design, recomputable
from avbook.saliency.truth import clip_spec, render_clip
from avbook.saliency.windows import TrainingWindows, WindowShape
from avbook.video import Clip, write_video

GIB = 2**30
N_WARM = {"cpu": 1, "cuda": 5} # steps that are not counted: AdamW has its moments only after the first


def generated_film(path, n_frames=96, fps=25):
    "A rendered scene of 360x640 as a film on disk, and where its observers looked."
    scene = render_clip(clip_spec("train", 0, condition="relevant", n_frames=n_frames, fps=fps, height=360, width=640))
    write_video(path, scene.frames, fps, scene.waveform, scene.spec.sample_rate)
    observer, frame = np.nonzero(np.isfinite(scene.fixations[..., 0]))
    across, down = scene.fixations[observer, frame].T
    looks = pd.DataFrame(dict(observer=observer, frame=frame, x=across, y=down))
    return Watched("film", Clip(path), (360, 640), tuple(Fraction(number, fps) for number in range(n_frames)), looks)


def loss(model, batch): return saliency_loss(model(batch["frames"], batch["waveform"]), batch["density"])


def seconds_a_step(model, samples, folder, given, n_workers):
    "Medians of wall and processor seconds from the beginning of a step to that of the next, or to the end of the last."
    moments, n_warm = [], N_WARM[given.device]
    def note():
        if given.device == "cuda": torch.cuda.synchronize()
        moments.append((time.perf_counter(), time.process_time()))
    def noted_step(*arguments):
        note()
        return accumulate_gradients(*arguments)
    def noted_end(_):
        note()
        return dict(loss=0.)
    n_steps = n_warm + given.steps
    config = FitConfig(n_steps=n_steps, save_every=n_steps, evaluate_every=n_steps, batch_size=given.batch,
                       precision=given.precision, recompute=recomputable(model) if given.recompute else (), n_workers=n_workers)
    fit(model, samples, loss, config, folder, noted_end, noted_step, progress="off")
    return [statistics.median(each) for each in np.diff(moments[n_warm:], axis=0).T.tolist()]


def one_way(given):
    "A line of JSON: what this way takes."
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    design = Design(width=given.width)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        film = generated_film(folder/"film.mp4")
        windows = TrainingWindows([film]*64*given.batch, WindowShape(design.size, design.n_frames, n_samples=design.buffer),
                                  folder/"frames")
        held = [windows[number] for number in range(4*given.batch)]
        model = AVRSP(design)
        found = dict(n_weights=sum(each.numel() for each in model.parameters()), before=psutil.Process().memory_info().rss)
        found["wall"], found["busy"] = seconds_a_step(model, windows, folder/"fed", given, given.workers)
        if given.device == "cuda":
            found["peak"] = torch.cuda.max_memory_allocated()
            found["held"] = seconds_a_step(model, held, folder/"held", given, 0)[0]
        else: found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
    print(json.dumps(found))


def in_own_process(arguments, device, least_free):
    "What a process printed last; None if it was ended, so that the machine keeps some memory."
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    environment = os.environ | (dict(ACCELERATE_USE_CPU="true") if device == "cpu" else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            if psutil.virtual_memory().available < least_free:
                process.kill()
                return None
            time.sleep(.1)
        told = process.stdout.read()
    if process.returncode: raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(told.splitlines()[-1])


def report(given, device, precision, is_recomputing):
    "One line of the table."
    name = f"{precision}, {'computed twice' if is_recomputing else 'everything kept'}"
    arguments = ["--device", device, "--precision", precision, "--steps", given.steps, "--batch", given.batch,
                 "--threads", given.threads, "--width", given.width, "--workers", given.workers or 4*(device == "cuda")]
    free = psutil.virtual_memory().available/GIB
    found = in_own_process([*arguments, *["--recompute"]*is_recomputing], device, given.least_free*GIB)
    if found is None:
        print(f"  {name:25} given up: of {free:.1f} GiB that were free less than {given.least_free:g} were left", flush=True)
        return
    line = f"  {name:25} {found['wall']:7.2f} s a step, {given.batch/found['wall']:.3g} clips a second"
    if device == "cuda":
        waiting = max(0, 1 - found["held"]/found["wall"])
        print(f"{line}; at most {found['peak']/GIB:.2f} GiB allocated; waits for data {waiting:.0%} of the time", flush=True)
        return
    print(f"{line} ({found['busy']:.1f} s of a processor, {given.batch/found['busy']:.3g} clips); at most "
          f"{found['peak']/GIB:.2f} GiB in use, {found['before']/GIB:.2f} before the first step", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=1, help="that are counted; on a GPU rather 20")
    options.add_argument("--batch", type=int, default=1, help="clips a step")
    options.add_argument("--width", type=float, default=1., help="share of every channel count; below 1 for a trial")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--workers", type=int, default=0, help="loader processes; 0: none, and four for a GPU")
    options.add_argument("--devices", nargs="*", choices=["cpu", "cuda"], default=["cpu", "cuda"])
    options.add_argument("--precisions", nargs="*", default=["float32", "bfloat16"])
    options.add_argument("--least-free", type=float, default=3., help="GiB of memory that the machine must keep")
    options.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--device", choices=["cpu", "cuda"], help=argparse.SUPPRESS)
    options.add_argument("--precision", help=argparse.SUPPRESS)
    options.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one: return one_way(given)
    for device in given.devices:
        if device == "cuda" and not torch.cuda.is_available():
            print("there is no GPU here: nothing is said about one")
            continue
        print(f"{device}: 32 frames of 224x384, width {given.width:g}, batch {given.batch}, {given.threads} thread(s), "
              f"median of {given.steps}", flush=True)
        for is_recomputing in (True, False):
            for precision in given.precisions: report(given, device, precision, is_recomputing)


if __name__ == "__main__": main()
