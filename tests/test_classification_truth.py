"""The generated benchmark against real label lists, brute force, and its own shards."""
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from avbook.classification.data import RecordStream, convert, list_shards, load_vocabulary
from avbook.classification.metrics import gap
from avbook.classification.records import read_records
from avbook.classification.truth import (
    LABEL_COUNTS,
    World,
    WorldSpec,
    draw_lengths,
    draw_records,
    kinds,
    label_frequencies,
    make_truth,
    posterior,
    shows,
)
from avbook.manifest import load_card
from avbook.repro import samples_folder

SMALL = WorldSpec(n_classes=20, n_picture_dims=24, n_sound_dims=16, picture_strength=2., sound_strength=1.5)


@pytest.fixture(scope="module")
def world(): return World(SMALL)


@pytest.fixture(scope="module")
def real_lists():
    if samples_folder() is None: pytest.skip("AVBOOK_SAMPLES is not set: no real label lists at hand")
    return pd.read_csv(samples_folder()/"yt8m"/"video_id_label_200.csv")


def test_label_counts_and_lengths_are_those_of_real_videos(real_lists):
    assert real_lists.n_labels.value_counts().to_dict() == LABEL_COUNTS
    assert (real_lists.labels.map(json.loads).map(len) == real_lists.n_labels).all()
    lengths = draw_lengths(10_000, np.random.default_rng(0))
    quantiles = [.1, .25, .5, .6, .75, .9]
    assert abs(np.quantile(lengths, quantiles) - real_lists.n_frames.quantile(quantiles)).max() < 20


def test_the_frequency_law_is_the_best_of_its_kind_for_real_lists(real_lists):
    labels = np.concatenate(real_lists.labels.map(json.loads).to_list())
    def surprise(shares): return -np.log(shares[labels]/shares.sum()).mean()
    ranks = np.arange(1, 3863)
    ours = surprise(label_frequencies(3862))
    assert ours < min(surprise((ranks + offset)**-power) for power in (.8, 1., 1.5, 2.) for offset in (0, 1, 10, 30)) + 1e-3


def test_the_posterior_is_that_of_all_sets_written_out(world):
    "Every set of up to 3 of 20 labels, weighed by prior and likelihood, without the recursion; larger sets are kept out."
    videos = world.draw(400, 3)
    videos = [each[videos.labels.sum(1) <= 3] for each in videos]
    weights = world.sets.weights.clone(); weights[4:] = 0
    capped = World(SMALL); capped.sets = capped.sets._replace(weights=weights)
    rgb,audio = videos[1][:3] + 4/512,videos[2][:3] + 4/512
    found = posterior(capped, rgb, audio)
    for video in range(3):
        ratios = log_ratio_by_density(world, rgb[video] - 4/512, audio[video] - 4/512) + world.sets.log_odds.numpy()
        total,by_label = 0.,np.zeros(20)
        for size in (1, 2, 3):
            for chosen in combinations(range(20), size):
                mass = weights[size].item()*np.exp(ratios[list(chosen)].sum())
                total += mass; by_label[list(chosen)] += mass
        np.testing.assert_allclose(found[video], by_label/total, rtol=1e-5, atol=1e-9)


def log_ratio_by_density(world, rgb, audio):
    "Log likelihood ratio of each class from normal densities of its projections, case by case."
    def density(value, centre): return np.exp(-(value - centre)**2/2)
    ratios = np.zeros(20)
    for c,kind in enumerate(kinds(SMALL)):
        picture,sound = rgb@world.directions["picture"][c]/SMALL.clutter,audio@world.directions["sound"][c]/SMALL.clutter
        seen,unseen = density(picture, 2), density(picture, 0)
        heard,unheard = density(sound, 1.5), density(sound, 0)
        d = world.decoys[c]
        ratios[c] = np.log({
            "picture": seen/unseen, "sound": heard/unheard, "either": seen*heard/(unseen*unheard),
            "both": seen*heard/((1 - 2*d)*unseen*unheard + d*seen*unheard + d*unseen*heard)}[kind])
    return ratios


def test_more_is_better_and_noise_is_chance(world):
    videos = world.draw(6_000, 4)
    rgb,audio = videos.rgb + 4/512,videos.audio + 4/512
    gaps = [gap(posterior(world, *given), videos.labels) for given in ((None, audio), (rgb, None), (rgb, audio))]
    prior = gap(np.tile(posterior(world), (6_000, 1)), videos.labels)
    assert prior < min(gaps[:2]) and max(gaps[:2]) < gaps[2]
    of_others = gap(posterior(world, rgb[::-1], audio[::-1]), videos.labels)
    assert of_others < prior


def test_nobody_ranks_better_than_the_posterior(world):
    "Forgetting the decoys, the counts or the bias costs GAP."
    videos = world.draw(15_000, 5)
    rgb,audio = videos.rgb + 4/512,videos.audio + 4/512
    best = gap(posterior(world, rgb, audio), videos.labels)
    no_decoys,no_counts = World(SMALL),World(SMALL)
    no_decoys.decoys = np.zeros(20)
    no_counts.sets = no_counts.sets._replace(weights=torch.ones_like(world.sets.weights))
    others = [posterior(no_decoys, rgb, audio), posterior(no_counts, rgb, audio), posterior(world, rgb + .05, audio)]
    assert all(gap(other, videos.labels) < best for other in others)


def test_the_same_seed_gives_the_same_bytes_and_splits_share_nothing(tmp_path):
    sizes = dict(train=50, validate=30)
    first,second = [make_truth(sizes, SMALL, folder=tmp_path/name, shard_size=20) for name in ("first", "second")]
    for path in first.iterdir(): assert path.read_bytes() == (second/path.name).read_bytes()
    records = [record for path in list_shards(first) for record in read_records(path, 20)]
    assert len(list_shards(first)) == 5 and len({record.id for record in records}) == 80
    assert len({record.rgb.tobytes() for record in records}) == 80
    assert load_vocabulary(first/"vocabulary.csv")[:3] == ["picture 0", "sound 1", "either 2"]


def test_frame_level_shards_say_what_video_level_shards_say(tmp_path, world):
    folders = {level: make_truth(dict(test=60), SMALL, level, tmp_path/level) for level in ("video", "frame")}
    maps = {level: convert(folders[level], tmp_path/f"{level}-map", 20, show_progress=False) for level in folders}
    batches = {level: found.batch(range(60)) for level,found in maps.items()}
    assert batches["video"]["id"] == batches["frame"]["id"]
    assert torch.equal(batches["video"]["labels"], batches["frame"]["labels"])
    answers = [posterior(world, batch["visual"][:, 0], batch["audio"][:, 0]) for batch in batches.values()]
    assert abs(answers[0] - answers[1]).max() < .05
    sample = next(iter(RecordStream(folders["frame"], 20, rows="frames")))
    assert sample["visual"].shape == (300, 1024) and 120 <= sample["mask"].sum() <= 300


def test_worlds_that_cannot_be():
    with pytest.raises(ValueError, match="409 classes show in the picture: n_picture_dims is 128, but must be from 409 to"):
        WorldSpec(n_classes=512)
    with pytest.raises(ValueError, match="n_classes is 10"): World(WorldSpec(n_classes=10))
    with pytest.raises(ValueError, match="level is 'clip'"): list(draw_records(World(SMALL), 1, 0, "clip"))
    assert shows(SMALL, "picture").sum() == 16 and set(kinds(SMALL)) == {"picture", "sound", "either", "both"}


def test_the_card_agrees():
    card = load_card("classification_truth")
    assert card.counts["classes"] == WorldSpec().n_classes
