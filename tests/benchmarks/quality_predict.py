"""How fast and in how much memory a film is scored: taskset -c 1 python tests/benchmarks/quality_predict.py

A minute of 1280x720 is encoded, then scored by the nano preset at the fine resolution (256 px): by four clips and by
windows all over. What decoding and resizing take is measured apart, and inside the same run. Seconds are the
processor's, since a shared machine's clock says nothing; the ratio to the film's length is theirs, too.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.ndimage import gaussian_filter

from avbook.quality import SlowFastVQA, score_video
from avbook.quality.predict import view_of
from avbook.quality.windows import iter_squares
from avbook.video import iter_frames, probe, resize_frames, write_video


def wandering(n_frames):
    "Frames of 1280x720 cut from a larger texture, along a path, with a soft disc that moves on its own."
    drawn = np.random.default_rng(0).normal(size=(960, 1600, 3))
    ground = sum(scale*gaussian_filter(drawn, (scale, scale, 0)) for scale in (1, 4, 16))
    ground = np.clip(128 + 40*ground/ground.std(), 0, 255).astype(np.uint8)
    for number in range(n_frames):
        top, left = round(120 + 110*np.sin(number/50)), round(160 + 150*np.cos(number/70))
        frame = ground[top:top + 720, left:left + 1280].copy()
        down, right = round(300 + 250*np.sin(number/15)), round(600 + 500*np.cos(number/23))
        frame[down:down + 90, right:right + 90] = (240, 200, 40)
        yield frame


def taken(work):
    "Seconds of the processor and of the clock."
    begun = time.process_time(), time.perf_counter()
    answer = work()
    return answer, time.process_time() - begun[0], time.perf_counter() - begun[1]


def measure(film, model, seconds):
    "Each way to score a film, and what reading it takes."
    process, count = psutil.Process(), lambda frames: sum(1 for _ in frames)
    view, n_frames = view_of(model), probe(film).n_frames
    _, decoded, _ = taken(lambda: count(iter_frames(film)))
    frame = next(frame for _, frame in iter_frames(film))
    size = (view.short_side, round(view.short_side*1280/720))
    _, resized, _ = taken(lambda: [resize_frames(frame[None], size) for _ in range(100)])
    _, read, _ = taken(lambda: count(iter_squares(film, view, [])))
    print(f"{n_frames} frames of 1280x720, {seconds} s; {torch.get_num_threads()} thread(s), batches of one")
    print(f"  decoding {decoded/n_frames*1000:.2f} ms a frame, resizing {resized*10:.2f}, "
          f"both and cutting {read/n_frames*1000:.2f}")
    for name, options in {"4 clips": {}, "dense": dict(is_dense=True)}.items():
        before = process.memory_info().rss
        verdict, processor, clock = taken(lambda options=options: score_video(film, model, device="cpu", **options))
        share = f", reading {100*read/processor:.0f} %" if name == "dense" else ""
        print(f"  {name:8} {len(verdict.clips):3} clips  {processor:6.1f} s of the processor ({clock:.1f} s){share}: "
              f"{seconds/processor:5.2f} times real time; {(process.memory_info().rss - before)/2**20:+.0f} MiB after")
        yield name, processor


def memory(folder, model, lengths, fps):
    "Memory in use while ever longer films are scored densely, sampled at each window."
    import avbook.quality.predict as predict
    process, inner, used = psutil.Process(), predict.iter_windows, []

    def watched(*given):
        for window in inner(*given):
            used.append(process.memory_info().rss/2**20)
            yield window

    predict.iter_windows = watched
    for seconds in lengths:
        film = write_video(folder/f"{seconds}.mp4", wandering(seconds*fps), fps, crf=23)
        used.clear()
        score_video(film, model, is_dense=True, device="cpu")
        print(f"  {seconds:4} s: {np.median(used):.0f} MiB in use, {max(used):.0f} at most")
    predict.iter_windows = inner


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--fps", type=int, default=25)
    options.add_argument("--size", type=int, default=256)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        film = write_video(folder/"film.mp4", wandering(given.seconds*given.fps), given.fps, crf=23)
        model = SlowFastVQA.from_preset("nano", size=given.size).eval()
        times = dict(measure(film, model, given.seconds))
        print(f"  dense takes {times['dense']/times['4 clips']:.1f} times as long as 4 clips")
        small = SlowFastVQA.from_preset("nano", size=64, window=(4, 4, 4)).eval()
        print("memory, dense, at 64 px:")
        memory(folder, small, (10, 20, 40), given.fps)


if __name__ == "__main__": main()
