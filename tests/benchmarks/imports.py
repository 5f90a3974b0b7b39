"""How long the three papers' imports take on top of PyTorch's own, the best of three fresh processes: python imports.py"""
import subprocess
import sys

LINES = [
    "import avbook.saliency, avbook.classification, avbook.quality", "import avbook.commands",
    "from avbook.saliency import AVRSP, predict_video", "from avbook.classification import build_model, tag",
    "from avbook.quality import SlowFastVQA, score_video", "from avbook.saliency import cc", "from avbook.quality import srocc"]
TIMED = """
import time
if {with_torch}: import torch
began = time.perf_counter()
{line}
print(time.perf_counter() - began)
"""


def seconds_of(line, with_torch):
    "The shortest of three."
    code = TIMED.format(line=line, with_torch=with_torch)
    return min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
               for _ in range(3))


print(f"{'PyTorch itself':64} {seconds_of('import torch', False):6.2f} s")
for line in LINES: print(f"{line:64} {seconds_of(line, True):6.2f} s")
