"""Quality's metrics against SciPy and real predictions; its losses; the whole batch's gradient over pieces, on the
chapter's network, in the training loop and over two processes."""
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from avbook.fit import FitConfig, fit, load_history
from avbook.quality.losses import BatchLoss, plcc_loss, quality_loss, rank_loss, two_pass_gradients
from avbook.quality.metrics import (
    KINDS, agreement, bootstrap_interval, challenge_score, fit_opinions, krocc, make_pairs, pair_accuracy, plcc,
    plcc_fit, rmse, rmse_fit, srocc)
from avbook.quality.model import SlowFastVQA

few_values = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 5)), min_size=2, max_size=30)


@pytest.fixture(scope="module")
def bvqi(samples):
    "A published method's predictions beside KoNViD-1k's opinions."
    return pd.read_csv(samples/"quality"/"konvid_bvqi_predictions.csv")


def test_real_predictions(bvqi):
    assert len(bvqi) == 1200
    pair = bvqi.bvqi_spatial, bvqi.mos
    assert srocc(*pair) == pytest.approx(.533656, abs=5e-7)
    assert plcc(*pair) == pytest.approx(.505356, abs=5e-7)
    assert krocc(*pair) == pytest.approx(.370746, abs=5e-7)
    table = agreement(*pair, n_resamples=100).set_index("metric")
    assert table.value["krocc_expected"] == pytest.approx(krocc(*pair), abs=.002)
    assert table.value["plcc_fit"] > table.value["plcc"] and (table.n == 1200).all()
    assert (table.low[:3] < table.value[:3]).all() and (table.value[:3] < table.high[:3]).all()
    assert rmse_fit(*pair) == pytest.approx(bvqi.mos.std(ddof=0)*(1 - plcc_fit(*pair)**2)**.5, abs=1e-4)


def test_real_predictions_do_not_depend_on_their_scale(bvqi):
    for scale, offset in ((1e-9, 0), (1e6, -3e5)):
        moved = scale*bvqi.bvqi_spatial + offset
        assert srocc(moved, bvqi.mos) == pytest.approx(.533656, abs=5e-7)
        assert plcc_fit(moved, bvqi.mos) == pytest.approx(plcc_fit(bvqi.bvqi_spatial, bvqi.mos), abs=1e-4)


@settings(max_examples=150, deadline=None)
@given(few_values)
def test_correlations_are_scipys_with_ties(rows):
    predicted, opinion = np.array(rows, float).T
    for ours, theirs in ((plcc, stats.pearsonr), (srocc, stats.spearmanr), (krocc, stats.kendalltau)):
        found = ours(predicted, opinion)
        if np.ptp(predicted) == 0 or np.ptp(opinion) == 0: assert np.isnan(found)
        else: assert found == pytest.approx(theirs(predicted, opinion).statistic, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(few_values, st.integers(0, 99))
def test_any_fit_is_as_good_as_a_line(rows, seed):
    predicted, opinion = np.array(rows, float).T
    predicted = predicted + .1*np.random.default_rng(seed).normal(size=len(predicted))
    fitted = fit_opinions(predicted, opinion)
    line = np.polyval(np.polyfit(predicted, opinion, 1), predicted) if len(rows) > 2 else fitted(predicted)
    assert rmse(fitted(predicted), opinion) <= rmse(line, opinion) + 1e-9
    assert bool(fitted.reason) == (fitted.kind == "line") and np.isfinite(fitted.values).all()


def test_intervals_hold_what_they_promise():
    "The SROCC of the whole population lies in some 57 of 60 intervals from 40 originals with 5 versions each."
    generator, n_held = np.random.default_rng(0), 0
    shared, own = 1., .5
    truth = 6/np.pi*np.arcsin((1/(1 + shared**2 + own**2))**.5/2)
    for trial in range(60):
        groups = np.repeat(np.arange(40), 5)
        opinion = generator.normal(size=200)
        predicted = opinion + shared*generator.normal(size=40)[groups] + own*generator.normal(size=200)
        low, high = bootstrap_interval(srocc, predicted, opinion, groups, 200, trial)
        n_held += low <= truth <= high
    assert 50 <= n_held <= 60


def test_pairs_of_a_data_set_of_kvqs_size():
    generator = np.random.default_rng(0)
    videos = pd.DataFrame(dict(video=[f"{number:04d}.mp4" for number in range(4200)], group=np.arange(4200)//7,
                               opinion=generator.uniform(1, 5, 4200).round(2)))
    began = time.process_time()
    pairs = make_pairs(videos, 1000, 1000, seed=3)
    assert time.process_time() - began < 10
    assert (pairs.type.value_counts() == 1000).all() and (pairs.mos_a >= pairs.mos_b).all()
    assert pairs.pair_id.is_unique and (pairs.video_a != pairs.video_b).all()
    truth = videos.set_index("video").opinion
    found = pair_accuracy(pairs, truth)
    assert (found.accuracy == 1).all() and found.loc["all", "n_left_out"] == (pairs.mos_diff == 0).sum()
    shuffled = dict(zip(videos.video, generator.permutation(truth), strict=True))
    assert (pair_accuracy(pairs, shuffled).accuracy - .5).abs().max() < .05


def test_the_challenge_on_a_file_made_by_hand():
    opinion = dict(a=4., b=3., c=2., d=1.)
    scores = dict(a=.9, b=.7, c=.8, d=.1)
    pairs = pd.DataFrame([("a", "b", 1, KINDS[0]), ("c", "d", 1, KINDS[0]), ("c", "b", 2, KINDS[1]),
                          ("d", "a", 2, KINDS[1])], columns=["video_a", "video_b", "ranking", "type"])
    accuracy = pair_accuracy(pairs, scores, "challenge").accuracy
    assert accuracy.tolist() == [1, .5, .75]
    linear = np.corrcoef([.9, .7, .8, .1], [4, 3, 2, 1])[0, 1]
    assert challenge_score(list(scores.values()), list(opinion.values()), accuracy[KINDS[1]], accuracy[KINDS[0]]) \
        == pytest.approx(.45*.8 + .45*linear + .05*1.5)


@settings(max_examples=60, deadline=None)
@given(few_values)
def test_the_order_of_a_batch_does_not_matter(rows):
    scores, opinion = torch.tensor(rows, dtype=torch.double).T
    turned = torch.randperm(len(scores))
    for way in (dict(), dict(form="kvq", reduction="kvq", margin=0.), dict(reduction="paper_sum", margin="adaptive")):
        one, other = quality_loss(scores, opinion, **way), quality_loss(scores[turned], opinion[turned], **way)
        assert torch.isfinite(one["loss"]) and one["loss"].item() == pytest.approx(other["loss"].item(), rel=1e-9)


def test_the_ranks_of_the_paper_by_a_loop():
    "Eq. 7 letter by letter."
    generator = torch.Generator().manual_seed(0)
    scores, opinion = torch.randn(7, generator=generator), torch.randint(1, 5, (7,), generator=generator).float()
    terms = [[max(0, 1 - (scores[i] - scores[j]).item()*torch.sign(opinion[i] - opinion[j]).item())
              for j in range(7)] for i in range(7)]
    assert rank_loss(scores, opinion, "paper_sum").item() == pytest.approx(np.sum(terms), rel=1e-6)
    ordered = [terms[i][j] for i in range(7) for j in range(i) if opinion[i] != opinion[j]]
    assert rank_loss(scores, opinion).item() == pytest.approx(np.mean(ordered), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_has_a_finite_gradient(kind):
    scores = torch.tensor([3., 3.01, 2.99, 3], dtype=kind).requires_grad_()
    quality_loss(scores, torch.tensor([4., 3, 2, 1], dtype=kind))["loss"].backward()
    assert torch.isfinite(scores.grad).all() and scores.grad.abs().max() > 0


def test_a_collapsed_network_recovers():
    "Equal scores have a gradient of finite length that pulls them apart, so training goes on."
    opinion = torch.tensor([1., 2, 3, 4])
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=.1)
    for _ in range(50):
        optimizer.zero_grad()
        plcc_loss(3 + weight*opinion, opinion).backward()
        nn.utils.clip_grad_norm_([weight], 1.)
        optimizer.step()
    assert plcc_loss(3 + weight*opinion, opinion).item() < 1e-3


class Clips:
    "Eight small frames each, some noisier than others: opinions that can be learnt."
    def __init__(self, n_clips=24): self.opinions = torch.linspace(1, 5, n_clips)
    def __len__(self): return len(self.opinions)
    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        frames = .5 + .1*self.opinions[index]*(torch.rand(3, 8, 16, 16, generator=generator) - .5)
        return dict(frames=frames, opinion=self.opinions[index], id=f"clip {index}")


def score(model, batch): return model(batch["frames"]).score, batch["opinion"]


def network(**changes):
    torch.manual_seed(0)
    small = dict(depths=(1, 1), slow_width=16, fast_width=8, slow_heads=(2, 4), fast_heads=(1, 2), window=(4, 4, 4))
    return SlowFastVQA.from_preset("nano", **{**small, "n_frames": 8, "size": 16, **changes})


def batch_of(clips, rows):
    samples = [clips[row] for row in rows]
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("frames", "opinion")}


def gradient(model): return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_pieces_have_the_gradient_of_the_whole_on_the_chapters_network():
    clips, loss = Clips(12), BatchLoss(score)
    whole, cut = network(), network()
    loss(whole, batch_of(clips, range(12)))["loss"].backward()
    pieces = [batch_of(clips, rows) for rows in (range(5), range(5, 6), range(6, 12))]
    values = two_pass_gradients(cut, pieces, loss, Accelerator())
    exact = gradient(whole)
    assert (gradient(cut) - exact).norm() <= 1e-5*exact.norm()
    assert values["loss"].item() == pytest.approx(loss(whole, batch_of(clips, range(12)))["loss"].item(), rel=1e-5)


def test_both_passes_drop_the_same():
    "Dropout and drop-path, and draws from NumPy's generator: against one graph over all pieces."
    clips, accelerator = Clips(8), Accelerator()
    def shaken(model, batch):
        scores, opinion = score(model, batch)
        return scores*torch.from_numpy(1 + .1*np.random.normal(size=len(scores))).float(), opinion
    pieces = [batch_of(clips, rows) for rows in (range(4), range(4, 8))]
    models = [network(drop_rate=.5, dropout=.5) for _ in range(2)]
    torch.manual_seed(1), np.random.seed(1)
    kept = [shaken(models[0], piece) for piece in pieces]
    quality_loss(*map(torch.cat, zip(*kept, strict=True)))["loss"].backward()
    torch.manual_seed(1), np.random.seed(1)
    two_pass_gradients(models[1], pieces, BatchLoss(shaken), accelerator)
    exact = gradient(models[0])
    assert exact.norm() > 0 and (gradient(models[1]) - exact).norm() <= 1e-5*exact.norm()


def weights_after(folder, batch_size, n_accumulated, clips=None, **given):
    "What the training loop makes of the network in three steps; all but the last bias, which no loss here sees."
    model = network()
    config = FitConfig(n_steps=3, batch_size=batch_size, n_accumulated=n_accumulated, peak_lr=1e-3, **given)
    fit(model, clips or Clips(), BatchLoss(score), config, folder, step=two_pass_gradients, progress="off")
    return torch.cat([each.detach().flatten() for each in model.parameters()])[:-1]


def assert_same_training(one, other):
    "Losses and lengths of gradients, which AdamW's steps do not show."
    first, second = (load_history(folder)[["loss", "plcc_loss", "rank_loss", "grad_norm"]] for folder in (one, other))
    assert len(first) == 3 and np.allclose(first, second, rtol=2e-3)


def test_training_in_pieces_is_training_on_the_whole(tmp_path):
    whole, cut = weights_after(tmp_path/"whole", 12, 1), weights_after(tmp_path/"cut", 3, 4)
    assert (whole - cut).abs().max() < 2e-4 # AdamW makes a step of 1e-3 of what is nearly zero
    assert_same_training(tmp_path/"whole", tmp_path/"cut")


def test_half_precision_is_not_taken_for_a_hidden_generator(tmp_path):
    assert torch.isfinite(weights_after(tmp_path/"half", 4, 2, precision="bfloat16")).all()


def test_a_clip_that_is_not_a_number_is_named(tmp_path):
    clips = Clips()
    clips.opinions[7] = np.nan
    with pytest.raises(FloatingPointError, match="'clip 7'") as caught: weights_after(tmp_path/"run", 4, 6, clips)
    assert str(caught.value).count("'clip ") == 4 # it and the rest of its piece


WORKER = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from test_quality_metrics import weights_after
torch.save(weights_after(sys.argv[2], 3, 2), f"{sys.argv[2]}/weights_of_{sys.argv[3]}.pt")
"""


def test_two_processes_train_as_one(root, tmp_path):
    "Each has half of every batch in two pieces: scores are gathered before the loss."
    shared = dict(os.environ, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(20_000 + os.getpid() % 20_000), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    (tmp_path/"two").mkdir()
    running = [subprocess.Popen([sys.executable, "-c", WORKER, str(root/"tests"), str(tmp_path/"two"), str(rank)],
                                env=dict(shared, RANK=str(rank), LOCAL_RANK=str(rank))) for rank in range(2)]
    assert [process.wait(timeout=500) for process in running] == [0, 0]
    one, other = (torch.load(tmp_path/"two"/f"weights_of_{rank}.pt") for rank in range(2))
    assert torch.equal(one, other)
    assert (weights_after(tmp_path/"alone", 12, 1) - one).abs().max() < 2e-4
    assert_same_training(tmp_path/"two", tmp_path/"alone")
