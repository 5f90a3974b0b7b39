"""The saliency metrics against two oracles: pysaliency, and MATLAB's formulas written out as loops."""
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from avbook.saliency import metrics
from avbook.saliency.metrics import PROTOCOLS, Protocol, auc_judd, cc, kl_divergence, nss, prepare, score, sim

with warnings.catch_warnings():
    warnings.simplefilter("ignore")   # pysaliency imports pkg_resources, which says that it is deprecated
    pysaliency = pytest.importorskip("pysaliency")
    from pysaliency import metrics as oracle
    from pysaliency.roc import general_roc

pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}")   # pysaliency's
              for warning in ("`trapz` is deprecated", "divide by zero encountered in log")]


def random_pair(seed):
    "A map without ties and from 1 to 200 fixated pixels, on a frame of odd size."
    generator = np.random.default_rng(seed)
    height, width = generator.integers(20, 120, 2)
    saliency = gaussian_filter(generator.random((height, width)), generator.uniform(0, 4)) + 1e-9
    fixated = np.zeros((height, width), bool)
    fixated.flat[generator.choice(height*width, generator.integers(1, 200), replace=False)] = True
    return saliency, fixated, gaussian_filter(fixated*1., 3)


PAIRS = [random_pair(seed) for seed in range(50)]


def literal_auc_judd(saliency, fixated):
    "MATLAB's AUC_Judd without jitter, one scan of the frame per fixation."
    thresholds = np.sort(saliency[fixated])[::-1]
    hits, false_alarms = [0.], [0.]
    for rank, threshold in enumerate(thresholds, 1):
        hits.append(rank/len(thresholds))
        false_alarms.append(((saliency >= threshold).sum() - rank)/(saliency.size - len(thresholds)))
    return np.trapezoid(hits + [1.], false_alarms + [1.])


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_equals_pysaliency(pair):
    saliency, fixated, density = pair
    assert cc(saliency, density) == pytest.approx(oracle.CC(saliency, density), abs=1e-6)
    assert kl_divergence(saliency, density) == pytest.approx(oracle.MIT_KLDiv(saliency, density), abs=1e-6)
    assert sim(saliency, density, stretch=False) == pytest.approx(oracle.SIM(saliency, density), abs=1e-6)
    stretched = [(one - one.min())/(one.max() - one.min()) for one in (saliency, density)]
    assert sim(saliency, density) == pytest.approx(oracle.SIM(*stretched), abs=1e-6)
    rows, columns = np.nonzero(fixated)
    assert nss(saliency, fixated, ddof=0) == pytest.approx(oracle.NSS(saliency, columns, rows).mean(), abs=1e-6)
    factor = ((saliency.size - 1)/saliency.size)**.5   # MATLAB's deviation is the larger one
    assert nss(saliency, fixated) == pytest.approx(factor*oracle.NSS(saliency, columns, rows).mean(), abs=1e-6)
    expected = general_roc(saliency[fixated], saliency[~fixated], judd=1)[0]
    assert auc_judd(saliency, fixated) == pytest.approx(expected, abs=1e-6)
    assert auc_judd(saliency, fixated) == pytest.approx(literal_auc_judd(saliency, fixated), abs=1e-12)
    assert auc_judd(saliency, fixated, ties="jitter") == pytest.approx(expected, abs=1e-4)


def test_a_batch_is_its_maps():
    generator = np.random.default_rng(1)
    maps, densities = generator.random((2, 9, 24, 31))
    fixated = generator.random(maps.shape) < .1*np.arange(9)[:, None, None]/9
    for metric, truth in ((cc, densities), (sim, densities), (kl_divergence, densities), (nss, fixated), (auc_judd, fixated)):
        alone = np.array([metric(one, other) for one, other in zip(maps, truth, strict=True)])
        np.testing.assert_allclose(metric(maps, truth), alone, rtol=1e-12)
        as_tensors = metric(torch.tensor(maps), torch.tensor(truth))
        assert isinstance(as_tensors, torch.Tensor)
        np.testing.assert_array_equal(as_tensors.numpy(), metric(maps, truth))


@pytest.mark.parametrize("make", [
    lambda maps: np.asfortranarray(maps), lambda maps: maps[:, ::-1, ::-1][:, ::-1, ::-1],
    lambda maps: maps.astype(">f8"), lambda maps: torch.tensor(maps).transpose(1, 2).contiguous().transpose(1, 2)])
def test_memory_layout_does_not_count(make):
    maps, densities = np.random.default_rng(2).random((2, 3, 8, 9))
    np.testing.assert_allclose(np.asarray(cc(make(maps), densities)), cc(maps, densities), rtol=1e-12)


def test_inputs_are_left_as_they_were():
    maps, densities = np.random.default_rng(3).random((2, 3, 8, 9))
    fixated = densities > .9
    before = maps.copy(), densities.copy(), fixated.copy()
    maps.setflags(write=False)   # as a memory-mapped file is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(maps, densities, fixated, PROTOCOLS["vinet"])
        auc_judd(maps, fixated, ties="jitter")
    for now, then in zip((maps, densities, fixated), before, strict=True): np.testing.assert_array_equal(now, then)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 6))
def test_the_mean_over_ties_is_the_mean_over_orders(seed, levels):
    "Few pixels, few levels: the expectation equals the average of the literal formula over many random orders."
    generator = np.random.default_rng(seed)
    saliency = generator.integers(0, levels, (1, 8))/1.
    fixated = np.zeros((1, 8), bool)
    fixated[0, generator.choice(8, 3, replace=False)] = True
    if saliency.min() == saliency.max(): return
    orders = generator.permuted(np.tile(np.arange(8), (4000, 1)), axis=1)[:, None]*1e-3
    broken = auc_judd(saliency + orders, np.broadcast_to(fixated, orders.shape), ties="literal")
    assert auc_judd(saliency, fixated) == pytest.approx(broken.mean(), abs=5*broken.std()/4000**.5 + 1e-9)


def test_jitter_does_not_shuffle_a_map_that_sums_to_one():
    saliency, fixated, _ = PAIRS[3]
    assert auc_judd(saliency/saliency.sum()*1e-6, fixated, ties="jitter") == pytest.approx(
        auc_judd(saliency, fixated, ties="jitter"), abs=1e-12)


def test_counted_looks_are_hits_of_their_own():
    "As pysaliency and AIM count them: a pixel looked at twice is two hits but one pixel."
    saliency, fixated, _ = PAIRS[5]
    looks = fixated*np.random.default_rng(0).integers(1, 4, fixated.shape)
    hits = np.repeat(saliency[fixated], looks[fixated])
    assert auc_judd(saliency, looks, counts=True) == pytest.approx(general_roc(hits, saliency[~fixated], judd=1)[0], abs=1e-9)
    rows, columns = np.nonzero(fixated)
    each = oracle.NSS(saliency, np.repeat(columns, looks[fixated]), np.repeat(rows, looks[fixated]))
    assert nss(saliency, looks, ddof=0, counts=True) == pytest.approx(each.mean(), abs=1e-9)


def test_torch_counts_and_measures_as_numpy_does(monkeypatch):
    "The way of tensors with a gradient or on a GPU, taken here on the CPU."
    generator = np.random.default_rng(8)
    maps, densities = np.floor(8*generator.random((2, 6, 15, 21)))
    fixated = generator.random(maps.shape) < .01*np.arange(6)[:, None, None]
    cases = [(cc, densities), (sim, densities), (kl_divergence, densities), (nss, fixated),
             *((partial(auc_judd, ties=ties), fixated) for ties in ("mean", "jitter", "literal"))]
    expected = [metric(maps, truth) for metric, truth in cases]
    in_groups = metrics._in_groups
    monkeypatch.setattr(metrics, "_in_groups", lambda *given: in_groups(*given[:-1], torch.device("cpu")))
    for (metric, truth), value in zip(cases, expected, strict=True):
        np.testing.assert_allclose(metric(torch.tensor(maps), truth), value, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_levels=st.sampled_from([2, 200, 10**9]), power=st.sampled_from([1, 4, 30]))
def test_counting_in_bins_is_counting(seed, n_levels, power):
    "Large maps with many ties or none, spread evenly or crowded into few bins: every count is the sorted map's."
    generator = np.random.default_rng(seed)
    maps = np.floor(n_levels*generator.random((1, 300, 301))**power)/n_levels - generator.choice([0, .5])
    fixated = generator.random(maps.shape) < generator.choice([1e-4, .01])
    if not fixated.any() or maps.min() == maps.max(): return
    thresholds = np.sort(maps[fixated])[::-1]
    n_reach = maps.size - np.searchsorted(np.sort(maps.ravel()), thresholds)
    rank = np.arange(1, len(thresholds) + 1)
    false_alarms = np.r_[0, (n_reach - rank)/(maps.size - len(rank)), 1]
    expected = np.trapezoid(np.r_[0, rank/len(rank), 1], false_alarms)
    assert auc_judd(maps, fixated, "literal")[0] == expected


def test_score_is_the_functions():
    "What the metrics share in score changes nothing, also where a bicubic resize goes below zero."
    generator = np.random.default_rng(11)
    maps, densities = generator.random((2, 3, 90, 120))**6
    fixated = densities > .9
    plain = Protocol("plain", resize="bicubic")
    for saliency in (maps, maps[:, ::2, ::3]):
        found, prepared = score(saliency, densities, fixated, plain), prepare(saliency, (90, 120), plain)
        positive = prepared.clip(min=0)
        for name, values in dict(cc=cc(prepared, densities), sim=sim(positive, densities), nss=nss(prepared, fixated),
                                 kl=kl_divergence(positive, densities), auc_judd=auc_judd(prepared, fixated)).items():
            np.testing.assert_allclose(found[name], values, rtol=1e-12)
    assert (prepared < 0).any()


def test_black_and_white_maps_are_numbers():
    maps, densities = np.random.default_rng(9).random((2, 3, 8, 9)) > .5
    for metric in (cc, sim, kl_divergence): np.testing.assert_array_equal(metric(maps, densities), metric(maps*1., densities*1.))
    assert score(maps, densities, densities).notna().all(axis=None)


def test_every_pixel_looked_at_has_no_auc():
    assert np.isnan(auc_judd(np.eye(3), np.ones((3, 3), bool)))


@pytest.mark.parametrize("size", [(48, 64), (17, 23), (36, 90)])
def test_bicubic_is_pillows(size):
    "Pillow's bicubic has MATLAB's coefficient and MATLAB's averaging where it shrinks."
    saliency = gaussian_filter(np.random.default_rng(4).random((30, 40)), 2)
    expected = np.asarray(Image.fromarray(saliency.astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_allclose(prepare(saliency[None], size, PROTOCOLS["mit"])[0], expected, atol=2e-6)


def test_blur_is_eleven_taps_of_sigma_two():
    "OpenCV's GaussianBlur of 11 taps with sigma left to it, which is 0.3*((11 - 1)/2 - 1) + 0.8 = 2."
    dot = np.zeros((1, 31, 31))
    dot[0, 15, 15] = 1
    taps = np.exp(-np.arange(-5, 6)**2/8)
    taps /= taps.sum()
    np.testing.assert_allclose(prepare(dot, (31, 31), PROTOCOLS["vinet_v2"])[0, 10:21, 10:21], np.outer(taps, taps), atol=1e-12)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_scores_do_not_depend_on_the_company(name):
    "A frame scores the same alone and in a film that is longer than one group."
    generator = np.random.default_rng(6)
    maps, densities = generator.random((37, 10, 12)), generator.random((37, 20, 30))
    fixated = densities > .95
    film = score(maps, densities, fixated, PROTOCOLS[name], frame_size=(40, 50))
    alone = score(maps[20:21], densities[20:21], fixated[20:21], PROTOCOLS[name], frame_size=(40, 50))
    np.testing.assert_allclose(film.iloc[20].to_numpy(float), alone.iloc[0].to_numpy(float), rtol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")
def test_on_a_gpu_as_on_the_cpu():
    generator = np.random.default_rng(7)
    maps, densities = generator.random((2, 4, 24, 31))
    fixated = densities > .95
    on_gpu = [torch.tensor(value, device="cuda") for value in (maps, densities, fixated)]
    for metric, truth in ((cc, 1), (sim, 1), (kl_divergence, 1), (nss, 2), (auc_judd, 2)):
        value = metric(on_gpu[0], on_gpu[truth])
        assert value.device.type == "cuda"
        np.testing.assert_allclose(value.cpu().numpy(), metric(maps, (densities, fixated)[truth - 1]), rtol=1e-9)
    np.testing.assert_allclose(score(*on_gpu, PROTOCOLS["vinet"]).to_numpy(float),
                               score(maps, densities, fixated, PROTOCOLS["vinet"]).to_numpy(float), rtol=1e-9)
