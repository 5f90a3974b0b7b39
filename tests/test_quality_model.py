"""What a notebook cell cannot show of the dual-path network: any design, other processes, Swin itself, the training loop."""
import copy
import hashlib
import math
import pickle
import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from avbook.fit import FitConfig, fit, load_weights
from avbook.quality import encoders, fusion
from avbook.quality.encoders import Pathway, WindowAttention3D, fit_window, window_plan
from avbook.quality.fusion import CrossAttention
from avbook.quality.model import (PRESETS, Design, SlowFastVQA, change, fit_calibration, load_vqa, recomputable,
                                  save_vqa)
from avbook.quality.weights import load_swin, swin_names

TINY = change(Design(**PRESETS["nano"]), slow_width=16, fast_width=8, depths=(2, 2), slow_heads=(2, 4),
              fast_heads=(1, 2), window=(4, 3, 3), n_frames=16, size=32)


def clips(n_clips=2, n_frames=16, height=32, width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n_clips, 3, n_frames, height, width), dtype=torch.uint8, generator=generator)


def shaken(model, seed=0):
    "Every weight away from its start, so that nothing is the identity."
    torch.manual_seed(seed)
    for parameter in model.parameters(): nn.init.normal_(parameter, std=.3)
    return model.eval()


def count(module): return sum(parameter.numel() for parameter in module.parameters())


# counts and shapes: each number of the design, on the meta device


@pytest.mark.parametrize(("preset", "slow", "fast", "meetings", "head"), [
    ("tiny", 27_869_286, 1_850_490, 4_134_240, 262_529), ("micro", 3_348_879, 854_325, 1_383_840, 78_017),
    ("nano", 562_330, 156_749, 154_560, 14_465)])
def test_counts_of_the_presets(preset, slow, fast, meetings, head):
    with torch.device("meta"): model = SlowFastVQA.from_preset(preset)
    parts = model.paths["slow"], model.paths["fast"], model.meetings
    assert tuple(map(count, parts)) == (slow, fast, meetings)
    assert count(model.weigh) + count(model.head) == head
    assert count(model) == slow + fast + meetings + head
    assert count(model) == dict(tiny=34_116_545, micro=5_665_061, nano=888_104)[preset]


def test_counts_of_each_part():
    with torch.device("meta"): model = SlowFastVQA()
    slow, fast = model.paths["slow"], model.paths["fast"]
    for path, parts in ((slow, [9_504, 18_816, 1_536]), (fast, [2_376, 1_248, 384])):
        assert [count(path.embed), count(path.semantic), count(path.norm)] == parts
    assert [count(stage) for stage in slow.stages] == [238_890, 920_148, 10_829_304, 14_297_424]
    assert [count(stage) for stage in fast.stages] == [19_518, 66_684, 731_880, 930_288]
    assert [count(merge) for merge in slow.merges] == [74_496, 296_448, 1_182_720]
    assert [count(merge) for merge in fast.merges] == [4_800, 18_816, 74_496]
    met = [[count(part[name]) for name in ("slow", "fast") for part in (meeting.ask, meeting.take_in)]
           for meeting in model.meetings.values()]
    assert met == [[23_664, 18_816, 6_096, 1_248], [93_408, 74_496, 23_712, 4_800],
                   [371_136, 296_448, 93_504, 18_816], [1_479_552, 1_182_720, 371_328, 74_496]]
    assert count(slow) - count(slow.semantic) == 27_850_470 == 28_158_070 - 307_600   # Video Swin-T without its head


WINDOWS = {224: ([64, 16, 4, 1], [128, 32, 8, 2]), 512: ([361, 100, 25, 9], [722, 200, 50, 18])}


@pytest.mark.parametrize("pixels", [224, 512])
def test_shapes_and_windows(pixels):
    rows = [pixels//4//2**stage for stage in range(4)]
    with torch.device("meta"):
        model = SlowFastVQA()
        seen = model.look(torch.empty(1, 3, 32, pixels, pixels))
        judged = model(torch.empty(1, 3, 32, pixels, pixels))
    assert seen["slow"].shape == (1, 4, rows[3], rows[3], 768) and seen["fast"].shape == (1, 16, rows[3], rows[3], 192)
    assert judged.quality_map.shape == (1, 16, rows[3], rows[3]) and judged.frame_scores.shape == (1, 16)
    for time, expected in zip((4, 16), WINDOWS[pixels], strict=True):
        fitted = [fit_window((time, each, each), (8, 7, 7), True) for each in rows]
        plans = [window_plan((time, each, each), *window) for each, window in zip(rows, fitted, strict=True)]
        assert [len(plan.order) for plan in plans] == expected
        assert fitted[0] == ((min(time, 8), 7, 7), (4 if time > 8 else 0, 3, 3))
        assert fitted[3][1][1:] == ((0, 0) if pixels == 224 else (3, 3))


# windows


def naive(attention, tokens):
    "Equation (3) over pairs of real tokens in one cell of a shifted chequerboard: no padding, rolling or mask."
    size, (window, shift) = tokens.shape[1:4], fit_window(tokens.shape[1:4], attention.window, attention.is_shifted)
    places = torch.tensor(list(product(*map(range, size))))
    cells = (places - torch.tensor(shift)).div(torch.tensor(window), rounding_mode="floor")
    together = (cells[:, None] == cells).all(-1)
    spans = torch.tensor([2*each - 1 for each in attention.window])
    offset = places[:, None] - places + torch.tensor(attention.window) - 1
    line = (offset[..., 0]*spans[1] + offset[..., 1])*spans[2] + offset[..., 2]
    query, key, value = (each.unflatten(-1, (attention.n_heads, -1)) for each in
                         attention.qkv(tokens.flatten(1, 3)).chunk(3, -1))
    seen = torch.zeros_like(value)
    for clip, head, here in product(range(len(tokens)), range(attention.n_heads), range(len(places))):
        others = together[here].nonzero()[:, 0]
        score = key[clip, others, head] @ query[clip, here, head]/query.shape[-1]**.5
        share = (score + attention.bias_table[line[here, others], head]).softmax(0)
        seen[clip, here, head] = share @ value[clip, others, head]
    return attention.project(seen.flatten(2)).reshape(tokens.shape)


axis = st.tuples(st.integers(1, 6), st.integers(1, 4))


@given(axis, axis, axis, st.booleans(), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_windows_are_what_a_loop_over_pairs_gives(time, down, across, is_shifted, seed):
    size, window = zip(time, down, across, strict=True)
    attention = shaken(WindowAttention3D(4, 2, window, is_shifted), seed)
    tokens = torch.randn(2, *size, 4)
    with torch.no_grad(): assert (attention(tokens) - naive(attention, tokens)).abs().max() < 1e-6


def test_masks_made_while_scoring_serve_training():
    window_plan.cache_clear()
    encoders.relative_index.cache_clear()
    attention, tokens = WindowAttention3D(4, 2, (2, 3, 3), True), torch.randn(1, 3, 5, 7, 4)
    with torch.inference_mode(): attention(tokens)
    attention(tokens).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def litter(tokens, window, plain=encoders.pad_to):
    "As windows are padded, but with anything but zeros."
    if tuple(window) == (1, 2, 2): return plain(tokens, window)   # a merging's own zeros are part of its definition
    littered, size = torch.full_like(plain(tokens, window), 1e3), tokens.shape[1:4]
    littered[:, :size[0], :size[1], :size[2]] = tokens
    return littered


@pytest.mark.parametrize("size", [(36, 52), (60, 100), (64, 64)])
def test_what_padding_holds_never_changes_a_score(size, monkeypatch):
    model, frames = shaken(SlowFastVQA(TINY)), clips(1, 16, *size)
    with torch.no_grad():
        plain = model(frames)
        for module in (encoders, fusion): monkeypatch.setattr(module, "pad_to", litter)
        for one, other in zip(plain, model(frames), strict=True): assert torch.equal(one, other)


def test_cross_attention_stays_in_its_window_at_512():
    attention = shaken(CrossAttention(8, 4, 2))
    asking, knowing, nowhere = torch.randn(1, 1, 16, 16, 8), torch.randn(1, 2, 16, 16, 4), torch.zeros(1)
    moved = knowing.clone()
    moved[:, 1, 15, 3, 0] += 1                                    # the last row of windows is padded to 21
    with torch.no_grad():
        changed = attention(asking, moved, nowhere, nowhere) != attention(asking, knowing, nowhere, nowhere)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[14:, :7] = True
    assert torch.equal(changed.any(-1)[0, 0], expected)


# Video Swin itself


def swin_forward(state, frames, depths, n_heads, window):
    "Video Swin as published, from a state dict in torchvision's names; grids that windows of rows and columns divide."
    def layer(tokens, name): return F.linear(tokens, state[f"{name}.weight"], state.get(f"{name}.bias"))
    def norm(tokens, name): return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
    def attend(tokens, name, heads, is_shifted):
        clip, size, width = len(tokens), tokens.shape[1:4], tokens.shape[-1]
        inside = [min(each) for each in zip(size, window, strict=True)]
        shift = [each//2*(is_shifted and each < length) for each, length in zip(inside, size, strict=True)]
        label = torch.zeros(size)
        for number, cut in enumerate(product(*[(slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
                                               for w, s in zip(inside, shift, strict=True)])): label[cut] = number
        def windows(grid): return grid.reshape(
            -1, size[0]//inside[0], inside[0], size[1]//inside[1], inside[1], size[2]//inside[2], inside[2],
            grid.shape[-1]).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, math.prod(inside), grid.shape[-1])
        label = windows(label[None, ..., None])[..., 0]
        mask = (label[:, None] != label[:, :, None])*-100.
        rolled = windows(tokens.roll([-each for each in shift], (1, 2, 3)))
        q, k, v = layer(rolled, f"{name}.qkv").reshape(*rolled.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q*q.shape[-1]**-.5) @ k.transpose(-2, -1)
        at = torch.stack(torch.meshgrid(*map(torch.arange, window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None]).permute(1, 2, 0) + torch.tensor(window) - 1
        index = apart[..., 0]*(2*window[1] - 1)*(2*window[2] - 1) + apart[..., 1]*(2*window[2] - 1) + apart[..., 2]
        n_tokens = math.prod(inside)
        bias = state[f"{name}.relative_position_bias_table"][index[:n_tokens, :n_tokens].reshape(-1)]
        scores = scores + bias.reshape(n_tokens, n_tokens, heads).permute(2, 0, 1)
        scores = scores + mask.repeat(clip, 1, 1)[:, None]
        seen = layer((scores.softmax(-1) @ v).transpose(1, 2).reshape(*rolled.shape[:2], width), f"{name}.proj")
        counts = [length//each for length, each in zip(size, inside, strict=True)]
        grid = seen.reshape(clip, *counts, *inside, width).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(tokens.shape)
        return grid.roll(shift, (1, 2, 3))
    tokens = F.conv3d(frames, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(2, 4, 4))
    tokens = norm(tokens.permute(0, 2, 3, 4, 1), "patch_embed.norm")
    for stage, (depth, heads) in enumerate(zip(depths, n_heads, strict=True)):
        for number in range(depth):
            block = f"features.{2*stage}.{number}"
            tokens = tokens + attend(norm(tokens, f"{block}.norm1"), f"{block}.attn", heads, number % 2)
            hidden = layer(norm(tokens, f"{block}.norm2"), f"{block}.mlp.0")
            tokens = tokens + layer(F.gelu(hidden), f"{block}.mlp.3")
        if stage == len(depths) - 1: break
        corners = [tokens[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        name = f"features.{2*stage + 1}"
        tokens = layer(norm(torch.cat(corners, -1), f"{name}.norm"), f"{name}.reduction")
    return norm(tokens, "norm")


def test_a_pathway_with_swins_weights_is_swin(tmp_path):
    depths, n_heads, window = (2, 3), (2, 4), (4, 3, 3)
    options = dict(width=8, depths=depths, n_heads=n_heads, window=window, semantic="none", position="none")
    donor = shaken(Pathway(**options))
    there = swin_names(donor, "torchvision")
    state = {there[name]: tensor for name, tensor in donor.state_dict().items()}
    torch.save(state, tmp_path/"swin.pth")
    taken = load_swin(Pathway(**options).eval(), tmp_path/"swin.pth")
    with_semantic = load_swin(Pathway(**options | dict(semantic="channel")).eval(), tmp_path/"swin.pth")
    for n_frames in (4, 16):                                       # a window that shrinks in time; one that shifts
        frames = torch.randn(2, 3, n_frames, 48, 24)
        with torch.no_grad():
            expected = swin_forward(state, frames, depths, n_heads, window)
            assert (taken(frames) - expected).abs().max() < 1e-4*expected.abs().max()
            assert torch.equal(with_semantic(frames), taken(frames))   # it begins as the identity


# the network


choices = dict(paths=["slow", "fast", "both"], cross=["all", "last", "none"], semantic=["channel", "scalar", "none"],
               position=["t", "thw", "none"], every=[1, 2, 4], window=[(8, 7, 7), (2, 3, 3), (1, 2, 4)],
               kernel=[(2, 4, 4), (3, 7, 7), (1, 5, 4)], stride=[(2, 4, 4), (1, 4, 4), (2, 8, 8)],
               dilation=[(1, 1, 1), (2, 1, 1)], depths=[(1,), (2, 1), (1, 1, 2)], drop_rate=[0., .5])


@given(st.fixed_dictionaries({name: st.sampled_from(known) for name, known in choices.items()}), st.integers(8, 70))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_design_judges_and_learns(switches, width):
    n_stages = len(switches["depths"])
    design = change(TINY, **switches, slow_heads=(2,)*n_stages, fast_heads=(1,)*n_stages, n_frames=8)
    model, frames = SlowFastVQA(design), clips(2, 8, 32, max(width, design.stride[2]*2**(n_stages - 1)))
    judged = model(frames)
    assert judged.frame_scores.shape == (2, 8//design.stride[0])
    assert torch.allclose(judged.quality_map.mean((1, 2, 3)), judged.score, atol=1e-6)
    assert ((judged.slow_share >= 0) & (judged.slow_share <= 1)).all()
    judged.score.sum().backward()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


def test_a_score_does_not_depend_on_its_batch():
    model, frames = shaken(SlowFastVQA(TINY)), clips(5)
    with torch.no_grad():
        together, alone = model(frames).score, torch.cat([model(each[None]).score for each in frames])
        turned = model(frames.flip(0)).score.flip(0)
    assert torch.allclose(together, alone, atol=1e-5) and torch.allclose(together, turned, atol=1e-5)


def test_the_same_seed_gives_the_same_score_in_another_process():
    script = f"""
import hashlib, torch
from avbook.quality.model import SlowFastVQA, Design
torch.manual_seed(3)
model = SlowFastVQA({TINY!r}).eval()
frames = torch.randint(0, 256, (1, 3, 16, 32, 40), dtype=torch.uint8)
with torch.no_grad(): print(hashlib.sha256(model(frames).quality_map.numpy().tobytes()).hexdigest())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    torch.manual_seed(3)
    model = SlowFastVQA(TINY).eval()
    frames = torch.randint(0, 256, (1, 3, 16, 32, 40), dtype=torch.uint8)
    with torch.no_grad(): here = hashlib.sha256(model(frames).quality_map.numpy().tobytes()).hexdigest()
    assert ran.stdout.strip() == here


def test_copies_and_other_precisions():
    model, frames = shaken(SlowFastVQA(TINY)), clips()
    model.calibration = fit_calibration([0., 1, 2], [1., 3, 5])
    with torch.no_grad():
        plain = model(frames)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(frames).score, plain.score) and other.calibration == model.calibration
        assert model.double()(frames).score.dtype == torch.float64
        assert torch.allclose(model(frames).score.float(), plain.score, atol=1e-4)


def test_weights_of_224_load_whole_at_512(tmp_path):
    small = SlowFastVQA.from_preset("nano")
    save_vqa(small, tmp_path/"rough.safetensors")
    fine = load_vqa(tmp_path/"rough.safetensors", size=512).eval()
    for name, tensor in fine.state_dict().items(): assert torch.equal(tensor, small.state_dict()[name]), name
    with torch.no_grad(): assert fine(clips(1, 8, 256, 256)).quality_map.shape == (1, 4, 16, 16)
    with torch.device("meta"): rough, fine = SlowFastVQA(size=224), SlowFastVQA(size=512)
    fine.load_state_dict(rough.state_dict(), strict=True, assign=True)


class Blurred(torch.utils.data.Dataset):
    "Noise, and how little of it was blurred."
    def __len__(self): return 16
    def __getitem__(self, index):
        frames, how = clips(1, 8, 32, 32, index)[0]/255., index/15
        return frames + how*(F.avg_pool2d(frames, 5, 1, 2) - frames), torch.tensor(1 - how)


def test_it_trains_in_the_loop_and_forgets_nothing(tmp_path):
    def loss(model, batch): return (model(batch[0]).score - batch[1]).square().mean()
    def evaluate(model):
        batch = torch.utils.data.default_collate([Blurred()[index] for index in range(16)])
        with torch.no_grad(): return dict(loss=loss(model, batch).item())
    kept = {}
    for name, options in dict(plain={}, again=dict(recompute=recomputable(SlowFastVQA(TINY)))).items():
        torch.manual_seed(0)
        model = SlowFastVQA(TINY, n_frames=8)
        model.head.start_at(.5)
        before = evaluate(model.eval())["loss"]
        config = FitConfig(n_epochs=20, batch_size=8, peak_lr=4e-3, schedule="cosine", no_decay=("*.bias_table",),
                           save_every=99, evaluate_every=99, **options)
        fit(model.train(), Blurred(), loss, config, tmp_path/name, evaluate, progress="off")
        assert evaluate(model.eval())["loss"] < before/2
        kept[name] = load_weights(SlowFastVQA(TINY, n_frames=8), tmp_path/name, "last").state_dict()
    for name, tensor in kept["plain"].items(): assert torch.allclose(tensor, kept["again"][name], atol=1e-4), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_a_gpu_gives_the_same():
    model, frames = shaken(SlowFastVQA(TINY)), clips(2, 16, 52, 68)
    with torch.no_grad(): here = model(frames)
    model.cuda()
    with torch.no_grad(): there = model(frames.cuda())
    for one, other in zip(here, there, strict=True): assert torch.allclose(one, other.cpu(), atol=1e-3, rtol=1e-3)
    with torch.autocast("cuda", torch.bfloat16): model.train()(frames.cuda()).score.sum().backward()
    assert all(each.grad.isfinite().all() for each in model.parameters())
