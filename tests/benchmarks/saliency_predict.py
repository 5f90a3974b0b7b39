"""How much sooner a film is predicted than by the plain loop over windows: python tests/benchmarks/saliency_predict.py

`--what speed` (the default) takes some minutes: full size, 32 frames of 224x384, single precision, the same random
weights for all. `--what memory` writes a film of ten minutes at 1280x720 and predicts it with a tiny network.
"""
import argparse
import statistics
import tempfile
import time
from copy import deepcopy
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import torch

from avbook.saliency import AVRSP
from avbook.saliency.predict import film_edges, film_sound, steady_frames, stream_video, write_prediction
from avbook.saliency.quick import fold_norms, quicken
from avbook.saliency.sharing import SharedSight
from avbook.saliency.windows import plan_window, window_sound
from avbook.video import Clip, probe, write_video


def full_network():
    "The paper's network with batch norms that matter."
    torch.manual_seed(0)
    model = AVRSP().eval()
    for module in model.modules():
        if "BatchNorm" not in type(module).__name__: continue
        torch.nn.init.uniform_(module.running_mean, -.2, .2)
        torch.nn.init.uniform_(module.running_var, .5, 2.)
    return model


class PerWindow:
    "A network on one window after the other."
    def __init__(self, model, frames, sounds): self.model, self.frames, self.sounds = model, frames, sounds

    def __call__(self, starts):
        clips = torch.stack([self.frames[start:start + 32] for start in starts]).movedim(-1, 1)
        return self.model(clips, self.sounds[list(starts)])


class Shared(PerWindow):
    "A network on windows that share their work; the first windows, which share nothing yet, are looked at beforehand."
    def __init__(self, *given, before):
        super().__init__(*given)
        self.sight = SharedSight(self.model)
        self.sight.see(before, self.frames)

    def __call__(self, starts):
        heard = self.model.hear(self.sounds[list(starts)], len(starts))
        return self.model.answer(self.sight.see(starts, self.frames), heard).maps


def channels_last(model):
    "The memory format alone: every convolution's weights with their channels together."
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d): module.to(memory_format=torch.channels_last_3d)
    return model


def speed(n_rounds, together):
    "Each way on the same windows in turns; medians of processor and wall seconds a window."
    model, drawn = full_network(), np.random.default_rng(0)
    n_windows, first = n_rounds*together, 4
    frames = torch.from_numpy(drawn.integers(0, 256, (n_windows + first + 32, 224, 384, 3), dtype=np.uint8))
    waveform = drawn.uniform(-.5, .5, 22_050*4).astype(np.float32)
    edges = [Fraction(number, 25) for number in range(len(frames) + 1)]
    sounds = torch.from_numpy(np.stack([
        window_sound(plan_window(start + 31, len(frames)), waveform, edges) for start in range(n_windows + first)]))
    folded, quick, given = fold_norms(deepcopy(model)), quicken(model), (frames, sounds)
    ways = {
        "plain loop": (PerWindow(model, *given), 1),
        "norms folded": (PerWindow(folded, *given), 1),
        "and channels_last_3d": (PerWindow(channels_last(deepcopy(folded)), *given), 1),
        "and layers as pictures": (PerWindow(quick, *given), 1),
        "and sharing": (Shared(quick, *given, before=range(first)), 1),
        f"and {together} windows at a time": (Shared(quick, *given, before=range(first)), together)}
    taken, furthest = {name: [] for name in ways}, dict.fromkeys(ways, 0.)
    for number in range(n_rounds):
        answers = {}
        for name, (way, size) in ways.items():
            starts = range(first + number*size, first + (number + 1)*size)
            begun = time.process_time(), time.perf_counter()
            maps = way(starts)
            taken[name].append(((time.process_time() - begun[0])/size, (time.perf_counter() - begun[1])/size))
            answers[name] = dict(zip(starts, maps, strict=True))
            for start in answers[name].keys() & answers["plain loop"].keys():
                plain = answers["plain loop"][start]
                furthest[name] = max(furthest[name], float(((answers[name][start] - plain)/plain).abs().max()))
    medians = {name: [statistics.median(each) for each in zip(*rounds, strict=True)] for name, rounds in taken.items()}
    print(f"\n32 frames of 224x384, float32, {torch.get_num_threads()} thread(s), median of {n_rounds}, the ways in turns")
    for name, (processor, wall) in medians.items():
        print(f"  {name:26} {processor:6.2f} s of a processor a window ({wall:6.2f} s): "
              f"{medians['plain loop'][0]/processor:4.2f} times as fast; off by {furthest[name]:.0e} of the map at most")
    return medians["and sharing"][0]


def reading(seconds_a_window):
    "What decoding and resizing take of a full-size prediction."
    with tempfile.TemporaryDirectory() as folder:
        drawn = np.random.default_rng(0).integers(0, 256, (60, 720, 1280, 3), dtype=np.uint8)
        film = write_video(Path(folder)/"film.mp4", drawn, 25)
        begun = time.process_time()
        n_frames = sum(1 for _ in steady_frames(film, (224, 384)))
        a_frame = (time.process_time() - begun)/n_frames
    print(f"\ndecoding and resizing 1280x720 of noise: {a_frame*1000:.1f} ms a frame, "
          f"{100*a_frame/(a_frame + seconds_a_window):.2f} % of its prediction")


def long_film(minutes, fps):
    "Frames of a film of any length: a square that wanders over a gradient."
    ground = np.add.outer(np.arange(720)//8, np.arange(1280)//8).astype(np.uint8)[..., None].repeat(3, 2)
    for number in range(round(minutes*60*fps)):
        frame = ground.copy()
        top, left = 300 + int(250*np.sin(number/40)), 600 + int(500*np.cos(number/70))
        frame[top:top + 100, left:left + 100] = 255
        yield frame


def memory(minutes, fps):
    "The most memory in use while a long film is predicted onto the disk by a tiny network."
    torch.manual_seed(0)
    tiny, process = AVRSP(width=1/16, size=(32, 48), n_frames=16, fusion_width=64).eval(), psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        waveform = np.random.default_rng(0).uniform(-.5, .5, minutes*60*22_050).astype(np.float32)
        film = write_video(Path(folder)/"film.mp4", long_film(minutes, fps), fps, waveform, 22_050)
        del waveform
        print(f"\n{probe(film).n_frames} frames of 1280x720, {minutes} minutes, {film.stat().st_size/2**20:.0f} MiB")
        with film_sound(Clip(film)) as sound: print(f"  {len(sound)} samples of sound, {len(film_edges(Clip(film)))} moments")
        begun, used = time.process_time(), []
        for number, _ in enumerate(stream_video(film, tiny, batch_size=8)):
            if number % 50 == 49: used.append(process.memory_info())
        print(f"  {(time.process_time() - begun)/(number + 1)*1000:.1f} ms of a processor a frame; most MiB in use, by tenths")
        for what, each in (("all", [now.rss for now in used]),
                           ("without files that are mapped, the sound's among them", [now.rss - now.shared for now in used])):
            print(f"    {what}: " + ", ".join(f"{max(part)/2**20:.0f}" for part in np.array_split(each, 10)))
        write_prediction(film, Path(folder)/"out", tiny, kind="npz", batch_size=8)
        print(f"  after writing it as npz: {process.memory_info().rss/2**20:.0f} MiB in use")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--what", choices=["speed", "memory", "all"], default="speed")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--together", type=int, default=2, help="windows at a time, in the last way")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--minutes", type=int, default=10)
    options.add_argument("--fps", type=int, default=10, help="of the long film")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.what in ("speed", "all"):
        with torch.inference_mode(): reading(speed(given.rounds, given.together))
    if given.what in ("memory", "all"): memory(given.minutes, given.fps)


if __name__ == "__main__": main()
