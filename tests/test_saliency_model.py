"""What a notebook cell cannot show of AVRSP: any design, other processes, other libraries, the training loop."""
import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import nn

from avbook.fit import FitConfig, fit, load_weights
from avbook.saliency.encoders import LIP, S3D, LogMelEar, SoundNet, feature_sizes
from avbook.saliency.fusion import FUSIONS, RelevanceAttention
from avbook.saliency.model import AVRSP, Design, change, load_avrsp, load_visual, recomputable, save_avrsp
from avbook.saliency.weights import load_encoder, s3d_names

TINY = Design(width=1/16, n_frames=8, size=(32, 48), n_samples=6000, audio_encoder="log_mel", n_heads=2, fusion_width=64)


def clips(n_clips=2, design=TINY, seed=0):
    "Random frames and sound that fit a design."
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (n_clips, 3, design.n_frames, *design.size), dtype=torch.uint8, generator=generator)
    return frames, .1*torch.randn(n_clips, design.buffer, generator=generator)


choices = dict(
    fusion=list(FUSIONS), synergy=["aim", "simple", "none"], gate=["channel", "scalar", "none"], scales=range(5),
    audio=[True, False], audio_encoder=["soundnet", "log_mel"], n_blocks=[1, 2], position=["none", "sinusoid"],
    score=["sigmoid", "none", "softmax"], head_weights=["softmax", "sigmoid"], streams=["two", "one"],
    starts_closed=[True, False], synergy_time=[1, 3], gate_order=["sigmoid first", "mean first"],
    gate_on=["fused", "visual"], placement=["side", "inline", "pooling"], rates=["scaled", "deeplab"], share=[4, 8],
    normalisation=["imagenet", "kinetics", "unit"], n_outputs=[1, 3], n_frames=[5, 8, 13],
    size=[(17, 33), (32, 32), (40, 50)], n_samples=[None, 5000])


@given(st.fixed_dictionaries({name: st.sampled_from(list(known)) for name, known in choices.items()}))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_design_sees_and_hears(switches):
    design = Design(width=1/16, n_heads=2, fusion_width=64, **switches)
    frames, sound = clips(1, design)
    network = AVRSP(design).eval()
    with torch.no_grad(): explained = network.explain(frames, sound)
    assert explained.maps.shape == (1, *([3] if design.n_outputs == 3 else []), *design.size)
    assert ((explained.maps > 0) & (explained.maps < 1)).all()
    assert len(explained.retention) == (design.n_blocks if design.hears and design.fusion == "ravf" else 0)
    assert len(explained.gates) == (0 if design.gate == "none" else min(3, design.scales))


@pytest.mark.parametrize("n_frames", [5, 6, 7, 9, 15, 17, 31, 33, 50, 64])
def test_any_clip_length(n_frames):
    design = change(TINY, n_frames=n_frames)
    with torch.no_grad(): assert AVRSP(design).eval()(*clips(1, design)).shape == (1, 32, 48)


def test_the_same_seed_gives_the_same_maps_in_another_process():
    script = f"""
import hashlib, torch
from avbook.saliency.model import AVRSP, Design
torch.manual_seed(3)
network = AVRSP({TINY!r}).eval()
frames = torch.randint(0, 256, (1, 3, 8, 32, 48), dtype=torch.uint8)
with torch.no_grad(): print(hashlib.sha256(network(frames).numpy().tobytes()).hexdigest())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    torch.manual_seed(3)
    network = AVRSP(TINY).eval()
    frames = torch.randint(0, 256, (1, 3, 8, 32, 48), dtype=torch.uint8)
    with torch.no_grad(): here = hashlib.sha256(network(frames).numpy().tobytes()).hexdigest()
    assert ran.stdout.strip() == here


def test_the_visual_branch_does_not_depend_on_there_being_ears():
    torch.manual_seed(0); hearing = AVRSP(TINY)
    torch.manual_seed(0); deaf = AVRSP(TINY, audio=False)
    for name, tensor in deaf.state_dict().items(): assert torch.equal(tensor, hearing.state_dict()[name]), name


@pytest.mark.parametrize("n_heads,n_channels,n_places,n_tokens", [(1, 4, 7, 1), (2, 8, 12, 3), (4, 12, 3, 5)])
@pytest.mark.parametrize("score,key_reduce,head_weights", list(itertools.product(
    ["sigmoid", "none"], ["sum", "mean"], ["softmax", "sigmoid"])))
def test_relevance_attention_is_its_equations(n_heads, n_channels, n_places, n_tokens, score, key_reduce, head_weights):
    torch.manual_seed(0)
    attention = RelevanceAttention(n_channels, n_heads, score, key_reduce, head_weights).double()
    visual, audio = torch.randn(1, n_places, n_channels).double(), torch.randn(1, n_tokens, n_channels).double()
    squash = dict(sigmoid=torch.sigmoid, none=lambda each: each)[score]
    wide, heads = n_channels//n_heads, []
    with torch.no_grad():
        vq, vk, vv = attention.of_visual(visual[0]).chunk(3, -1)
        aq, ak, av = attention.of_audio(audio[0]).chunk(3, -1)
        for head in range(n_heads):
            of = slice(head*wide, (head + 1)*wide)
            ret_a, ret_v = (squash(query[:, of] @ key[:, of].T/wide**.5) for query, key in ((vq, ak), (aq, vk)))
            by = (n_tokens, n_places) if key_reduce == "mean" else (1, 1)
            heads.append((vv[:, of] + ret_a @ av[:, of]/by[0], av[:, of] + ret_v @ vv[:, of]/by[1]))
        seen, heard = (torch.cat(each, 1) for each in zip(*heads, strict=True))
        scores = attention.to_heads(torch.cat([seen.mean(0), heard.mean(0)]))
        weights = scores.softmax(0) if head_weights == "softmax" else scores.sigmoid()
        share = weights.repeat_interleave(wide)
        to_visual, to_audio, retention = attention(visual, audio)
        torch.testing.assert_close(to_visual[0], attention.visual_out(share*seen), rtol=0, atol=1e-12)
        torch.testing.assert_close(to_audio[0], attention.audio_out(share*heard), rtol=0, atol=1e-12)
        if score == "sigmoid": assert all(((each >= 0) & (each <= 1)).all() for each in retention)


def test_torchvision_is_the_same_network():
    video = pytest.importorskip("torchvision.models.video", reason="torchvision is not installed")
    theirs, ours = video.s3d(), S3D(n_classes=400)
    there = s3d_names("torchvision")
    assert set(there.values()) == set(theirs.state_dict()) and len(there) == 464
    theirs.load_state_dict({there[name]: tensor for name, tensor in ours.state_dict().items()})
    frames = torch.rand(1, 3, 16, 64, 64)
    with torch.no_grad(): assert torch.equal(theirs.eval().features(frames), ours.eval().base(frames))


def test_half_precision_survives_the_largest_contrast():
    design = change(TINY, n_frames=8)
    network = AVRSP(design).eval()
    for each in network.modules():
        if isinstance(each, LIP): nn.init.normal_(each.logit[-2].weight, std=1e3)
    frames, sound = clips(1, design)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", dtype): maps = network(frames, 1e3*sound)
        assert torch.isfinite(maps).all()


@pytest.mark.parametrize("ear", [SoundNet, LogMelEar])
@pytest.mark.parametrize("sound", [torch.zeros(1, 24_000), torch.ones(1, 24_000), torch.full((2, 9000), 1e-9)])
def test_odd_sounds_are_heard_without_harm(ear, sound):
    for is_training in (True, False):
        tokens = ear(1/16).train(is_training)(sound)
        tokens.sum().backward()
        assert torch.isfinite(tokens).all()


def test_features_have_the_sizes_that_the_arithmetic_says():
    s3d = S3D(1/16).eval()
    for size in itertools.product((5, 6, 11), (17, 30, 33), (24, 41)):
        features, found = torch.rand(1, 3, *size), []
        for layers in s3d.blocks():
            with torch.no_grad(): features = nn.Sequential(*layers)(features)
            found.append(tuple(features.shape[2:]))
        assert found == feature_sizes(*size)


class Pairs:
    "Four clips, each with its target."
    def __len__(self): return 4
    def __getitem__(self, index):
        frames, sound = clips(1, seed=index)
        return dict(frames=frames[0], sound=sound[0], target=torch.full((32, 48), float(index)/4))


def squared(model, batch): return (model(batch["frames"], batch["sound"]) - batch["target"]).square().mean()


def test_the_training_loop_recomputes_to_the_bit_and_stage_one_is_read_by_stage_two(tmp_path):
    def trained(name, recompute=()):
        torch.manual_seed(0)
        model = AVRSP(TINY, audio=False, dropout=0.)
        config = FitConfig(n_steps=3, batch_size=2, peak_lr=1e-3, recompute=recompute)
        fit(model, Pairs(), squared, config, tmp_path/name)
        return model
    plain, again = trained("plain"), trained("again", recomputable(AVRSP(TINY, audio=False)))
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    weights = next((tmp_path/"plain"/"checkpoints").glob("*/model.safetensors"))
    stage_two = load_visual(AVRSP(TINY), weights)
    left = load_weights(AVRSP(TINY, audio=False), tmp_path/"plain", "last")
    frames, _ = clips()
    with torch.no_grad():
        assert torch.equal(stage_two.eval().see(frames).deepest, left.eval().see(frames).deepest)


def test_a_broken_or_foreign_file_is_named(tmp_path):
    network = AVRSP(TINY)
    save_avrsp(network, tmp_path/"whole.safetensors")
    (tmp_path/"cut.safetensors").write_bytes((tmp_path/"whole.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.safetensors"): load_avrsp(tmp_path/"cut.safetensors")
    with pytest.raises(ValueError, match="cut.safetensors"): load_visual(network, tmp_path/"cut.safetensors")
    with pytest.raises(FileNotFoundError, match="gone.safetensors"): load_avrsp(tmp_path/"gone.safetensors")
    save_model(network, tmp_path/"bare.safetensors")
    with pytest.raises(ValueError, match="does not say which network"): load_avrsp(tmp_path/"bare.safetensors")
    with pytest.raises(ValueError, match="bare.safetensors: .* published weights need width 1"):
        load_encoder(S3D(), tmp_path/"bare.safetensors")
    with pytest.raises(ValueError, match="bare.safetensors: no SoundNet, or not all of it"):
        load_encoder(SoundNet(), tmp_path/"bare.safetensors")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_loading_keeps_the_normalisation_of_the_weights(tmp_path):
    network = AVRSP(replace(TINY, normalisation="kinetics"))
    save_avrsp(network, tmp_path/"weights.safetensors")
    other = load_visual(AVRSP(TINY), tmp_path/"weights.safetensors")
    assert torch.equal(other.picture.normalise.mean, network.picture.normalise.mean)
    assert load_avrsp(tmp_path/"weights.safetensors").design.normalisation == "kinetics"
