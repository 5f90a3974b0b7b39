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


def drawn(n_frames, n_fixations):
    "Maps, densities and fixations of 360x640."
    generator = np.random.default_rng(0)
    shape = n_frames, 360, 640
    saliency = gaussian_filter(generator.random(shape), (0, 8, 8))
    fixated = np.zeros(shape, bool)
    for frame in fixated: frame.flat[generator.choice(frame.size, n_fixations, replace=False)] = True
    return saliency, gaussian_filter(fixated*1., (0, 12, 12)), fixated


def seconds(work, repeats):
    "Wall and processor seconds of the fastest of a few calls, and what it returns."
    taken = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        result = work()
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return (*map(min, zip(*taken, strict=True)), result)


def report(name, loop, ours):
    "One line: how the two compare in wall time and in processor time."
    difference = abs(np.asarray(loop[2]) - np.asarray(ours[2])).max()
    print(f"  {name:31} loop {loop[0]:6.2f} s, ours {ours[0]:6.3f} s: {loop[0]/ours[0]:5.1f} times as fast "
          f"({loop[1]/ours[1]:.1f} in processor time); largest difference {difference:.0e}")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--frames", type=int, default=100)
    options.add_argument("--fixations", type=int, default=300)
    options.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    given = options.parse_args()
    saliency, density, fixated = drawn(given.frames, given.fixations)
    frames = list(zip(saliency, density, fixated, strict=True))
    plain, names = Protocol("plain"), ["cc", "sim", "nss", "auc_judd"]   # nothing around the formulas

    print(f"{given.frames} frames of 360x640 with {given.fixations} fixations each, fastest of {given.repeats}")
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        threadpool_limits(n_threads)   # NumPy's linear algebra
        print(f"{n_threads} thread(s)")
        report("AUC-Judd", seconds(lambda: [looped_auc(one, fixed) for one, _, fixed in frames], given.repeats),
               seconds(lambda: auc_judd(saliency, fixated), given.repeats))
        loop = seconds(lambda: [looped_four(*frame) for frame in frames], given.repeats)
        report("four metrics, by their functions", loop, seconds(lambda: np.stack(
            [cc(saliency, density), sim(saliency, density), nss(saliency, fixated), auc_judd(saliency, fixated)],
            axis=1), given.repeats))
        report("four metrics and KL, by score()", loop, seconds(
            lambda: score(saliency, density, fixated, plain)[names].to_numpy(), given.repeats))
        whole = seconds(lambda: score(saliency, density, fixated), given.repeats)
        print(f"  score() with the default protocol, which also blurs: {whole[0]:.3f} s ({whole[1]:.3f} of a processor)")


if __name__ == "__main__": main()
