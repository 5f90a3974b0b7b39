"""How much faster the metrics are than one scan of the frame per fixation: python tests/benchmarks/saliency_metrics.py"""
import argparse
import time

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from avbook.saliency.metrics import Protocol, auc_judd, cc, nss, score, sim


def looped_auc(saliency, fixated):
    "As published evaluations write it: for each fixation, scan the frame."
    thresholds = np.sort(saliency[fixated])[::-1]
    hits, false_alarms = np.zeros(len(thresholds) + 2), np.zeros(len(thresholds) + 2)
    hits[-1] = false_alarms[-1] = 1
    for index, threshold in enumerate(thresholds):
        hits[index + 1] = (index + 1)/len(thresholds)
        false_alarms[index + 1] = ((saliency >= threshold).sum() - index - 1)/(saliency.size - len(thresholds))
    return np.trapezoid(hits, false_alarms)


def looped_four(saliency, density, fixated):
    "CC, SIM, NSS and AUC-Judd of one frame in plain NumPy, with the loop."
    standard = (saliency - saliency.mean())/saliency.std(ddof=1)
    correlation = np.corrcoef(saliency.ravel(), density.ravel())[0, 1]
    stretched = [(one - one.min())/(one.max() - one.min()) for one in (saliency, density)]
    shared = np.minimum(*[one/one.sum() for one in stretched]).sum()
    return correlation, shared, standard[fixated].mean(), looped_auc(saliency, fixated)


def drawn(n_frames, n_fixations, seed):
    "Maps, densities and fixations of 360x640."
    generator = np.random.default_rng(seed)
    shape = n_frames, 360, 640
    saliency = gaussian_filter(generator.random(shape), (0, 8, 8))
    fixated = np.zeros(shape, bool)
    for frame in fixated: frame.flat[generator.choice(frame.size, n_fixations, replace=False)] = True
    return saliency, gaussian_filter(fixated*1., (0, 12, 12)), fixated


def each_frame(measure): return lambda *film: np.stack([measure(*frame) for frame in zip(*film, strict=True)])


def by_functions(saliency, density, fixated):
    return np.stack([cc(saliency, density), sim(saliency, density), nss(saliency, fixated), auc_judd(saliency, fixated)], 1)


def by_score(saliency, density, fixated):
    return score(saliency, density, fixated, Protocol("plain"))[["cc", "sim", "nss", "auc_judd"]].to_numpy()


COMPARED = {   # the loop, ours
    "AUC-Judd": (each_frame(lambda saliency, _, fixated: looped_auc(saliency, fixated)),
                 lambda saliency, _, fixated: auc_judd(saliency, fixated)),
    "four metrics, by their functions": (each_frame(looped_four), by_functions),
    "four metrics and KL, by score()": (each_frame(looped_four), by_score)}


def timed(work, film):
    "Wall and processor seconds, and what came out."
    start = time.perf_counter(), time.process_time()
    result = work(*film)
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]]), result


def report(name, films):
    "One line: both on the same frames in turn, so that what else the machine does slows both."
    spent, difference = np.zeros((2, 2)), 0.
    for film in films:
        (loop, expected), (ours, found) = [timed(work, film) for work in COMPARED[name]]
        spent += loop, ours
        difference = max(difference, abs(expected - found).max())
    (loop_wall, loop_busy), (wall, busy) = spent
    print(f"  {name:32} loop {loop_wall:6.2f} s, ours {wall:6.3f} s: {loop_wall/wall:5.1f} times as fast "
          f"({loop_busy/busy:.1f} in processor time); largest difference {difference:.0e}", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--frames", type=int, default=1000, help="in films of 50, four of which are drawn")
    options.add_argument("--fixations", type=int, default=300)
    options.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    given = options.parse_args()
    n_films = max(1, given.frames//50)
    drawn_films = [drawn(min(50, given.frames), given.fixations, seed) for seed in range(min(4, n_films))]
    films = [drawn_films[number % len(drawn_films)] for number in range(n_films)]
    print(f"{sum(len(film[0]) for film in films)} frames of 360x640 with {given.fixations} fixations each")
    for n_threads in given.threads:
        torch.set_num_threads(n_threads)
        threadpool_limits(n_threads)   # NumPy's linear algebra
        print(f"{n_threads} thread(s)")
        for name in COMPARED: report(name, films)


if __name__ == "__main__": main()
