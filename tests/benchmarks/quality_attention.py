"""Window attention, fused and with the softmax written out: python tests/benchmarks/quality_attention.py"""
import argparse
import time

import torch
from torch import nn

from avbook.layers import attention_weights
from avbook.quality import encoders
from avbook.quality.encoders import WindowAttention3D, fit_window, window_plan
from avbook.quality.model import PRESETS, Design


def written_out(query, key, value, mask=None):
    "Every score, every weight, as the formula has it."
    return attention_weights(query, key, mask) @ value


class MaskPerWindow(nn.Module):
    "The same weights with the softmax written out over all windows at once, so each window needs a mask of its own."
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, tokens):
        size, attention = tuple(tokens.shape[1:4]), self.attention
        window, shift = fit_window(size, attention.window, attention.is_shifted)
        plan, bias = window_plan(size, window, shift), attention.bias(window)
        n_tokens = bias.shape[-1]
        masks = torch.cat([(torch.zeros(1, 1, n_tokens, n_tokens) if mask is None else mask[None, None])
                           .expand(n_windows, 1, -1, -1) for n_windows, mask in zip(plan.counts, plan.masks, strict=True)])
        padded = encoders.pad_to(tokens, window)
        rolled = padded.roll([-each for each in shift], (1, 2, 3)) if any(shift) else padded
        windows = encoders.to_windows(rolled, window)[0]
        query, key, value = (encoders.split_heads(each, attention.n_heads)
                             for each in attention.qkv(windows).chunk(3, -1))
        seen = written_out(query, key, value, bias + masks[plan.back])
        grid = encoders.from_windows(attention.project(encoders.join_heads(seen))[None], padded.shape[1:4], window)
        if any(shift): grid = grid.roll(shift, (1, 2, 3))
        return grid[:, :size[0], :size[1], :size[2]]


class Kept:
    "Bytes of the largest tensors alive at once, as PyTorch's own allocator events count them."
    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        alive, self.peak = 0, 0
        for event in self.profile.profiler.kineto_results.events():
            if event.name() != "[memory]": continue
            alive += event.nbytes()
            self.peak = max(self.peak, alive)


def measure(module, tokens, repeats):
    "Processor seconds of the fastest call, and the most memory alive in one, MiB."
    with torch.no_grad():
        module(tokens)
        with Kept() as kept: found = module(tokens)
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            module(tokens)
            taken.append(time.process_time() - start)
    return min(taken), kept.peak/2**20, found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    design, rows = Design(**PRESETS[options.preset]), options.pixels//4
    print(f"{options.preset}, {options.pixels} px, one clip, one thread; processor time of the fastest of {options.repeats}")
    for path, moments in (("slow", 4), ("fast", 16)):
        width, heads = getattr(design, f"{path}_width"), getattr(design, f"{path}_heads")
        for stage in range(len(design.depths)):
            side, channels = -(-rows//2**stage), width*2**stage
            attention = WindowAttention3D(channels, heads[stage], design.window, is_shifted=True).eval()
            tokens = torch.randn(1, moments, side, side, channels)
            fused = measure(attention, tokens, options.repeats)
            loose = measure(MaskPerWindow(attention), tokens, options.repeats)
            size, gap = f"{moments}x{side}x{side}x{channels}", (loose[2] - fused[2]).abs().max()
            print(f"  {path} stage {stage + 1}, {size:12}: written out {1e3*loose[0]:4.0f} ms {loose[1]:4.0f} MiB, fused "
                  f"{1e3*fused[0]:4.0f} ms {fused[1]:4.0f} MiB: {loose[0]/fused[0]:4.1f} times as fast in "
                  f"1/{loose[1]/fused[1]:.1f} of the memory; largest difference {gap:.0e}")


if __name__ == "__main__": main()
