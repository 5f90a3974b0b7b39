"""The loss against pysaliency, in every precision, and where it is hardest: flat, empty, tiny, enormous."""
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from avbook.saliency.losses import loss_terms, saliency_loss
from avbook.saliency.metrics import EPSILON

with warnings.catch_warnings():
    warnings.simplefilter("ignore")   # pysaliency imports pkg_resources, which says that it is deprecated
    pysaliency = pytest.importorskip("pysaliency")
    from pysaliency import metrics as oracle

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log")   # pysaliency's


def random_pair(seed):
    "A map and a density of blurred looks, (height, width) of odd size."
    generator = np.random.default_rng(seed)
    height, width = generator.integers(20, 90, 2)
    fixated = np.zeros((height, width))
    fixated.flat[generator.choice(height*width, generator.integers(1, 60), replace=False)] = 1
    return gaussian_filter(generator.random((height, width)), generator.uniform(0, 4)) + 1e-6, gaussian_filter(fixated, 3)


@pytest.mark.parametrize("seed", range(25))
def test_equals_pysaliency(seed):
    predicted, density = random_pair(seed)
    pair = [torch.tensor(values)[None] for values in (predicted, density)]
    terms = loss_terms(*pair, epsilon=EPSILON)
    lowered = [one - one.min() for one in (predicted, density)]
    assert terms["kl"].item() == pytest.approx(oracle.MIT_KLDiv(predicted, density), abs=1e-9)
    assert terms["cc"].item() == pytest.approx(oracle.CC(predicted, density), abs=1e-9)
    assert terms["sim"].item() == pytest.approx(oracle.SIM(*lowered), abs=1e-9)
    assert loss_terms(*pair, stretch=False)["sim"].item() == pytest.approx(oracle.SIM(predicted, density), abs=1e-9)
    whole = oracle.MIT_KLDiv(predicted, density) - .3*oracle.CC(predicted, density) - .2*oracle.SIM(*lowered)
    assert saliency_loss(*pair, -.3, -.2, epsilon=EPSILON).item() == pytest.approx(whole, abs=1e-9)
    in_float32 = loss_terms(*[values.float() for values in pair])
    for name in ("cc", "sim"): assert in_float32[name].item() == pytest.approx(terms[name].item(), abs=1e-4)
    assert in_float32["kl"].item() == pytest.approx(terms["kl"].item(), abs=.02)   # the larger epsilon


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1., 255., 1e12])
def test_scale_does_not_count(scale):
    generator = torch.Generator().manual_seed(0)
    predicted, density = torch.rand(2, 4, 30, 40, generator=generator)
    expected = loss_terms(predicted, density)
    for pair in ((scale*predicted, density), (predicted, scale*density)):
        for name, values in loss_terms(*pair).items(): torch.testing.assert_close(values, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_costs_only_its_own_digits(kind):
    "A whole frame of 224x384: in half precision its sums would overflow or stand still."
    generator = torch.Generator().manual_seed(1)
    density = torch.tensor(gaussian_filter(torch.rand(2, 224, 384, generator=generator).numpy(), (0, 20, 20)))
    density = (density - density.amin((1, 2), keepdim=True))**3
    density /= density.amax((1, 2), keepdim=True)
    logits = torch.randn(2, 224, 384, generator=generator)
    exact = loss_terms(logits.sigmoid(), density)
    for name, values in loss_terms(logits.to(kind).sigmoid(), density).items():
        torch.testing.assert_close(values, exact[name], atol=.01, rtol=.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert saliency_loss(logits.sigmoid(), density).dtype == torch.float32


@pytest.mark.parametrize("make", [
    lambda shape: torch.zeros(shape), lambda shape: torch.full(shape, .3), lambda shape: torch.full(shape, 1e-30),
    lambda shape: torch.full(shape, 1e-42), lambda shape: torch.full(shape, 1e30),
    lambda shape: .3 + 1e-7*torch.rand(shape), lambda shape: torch.zeros(shape).index_fill(1, torch.tensor([3]), 1e-38)],
    ids=["zero", "flat", "small", "subnormal", "large", "nearly flat", "one small row"])
def test_gradients_are_finite_where_maps_say_nothing(make):
    predicted = make((3, 20, 30)).requires_grad_()
    density = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(2))
    loss = saliency_loss(predicted, density)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(predicted.grad).all()


def test_one_look_in_a_corner():
    density = torch.zeros(1, 20, 30)
    density[0, 0, 0] = 1
    assert loss_terms(torch.ones(1, 20, 30), density)["kl"].item() == pytest.approx(np.log(600), abs=1e-3)
    worst = loss_terms(1 - density, density)   # the one pixel that was looked at is the one excluded
    assert 13 < worst["kl"].item() < 17 and worst["cc"].item() == pytest.approx(-1, abs=1e-4)


def test_loss_falls_for_a_small_network():
    "Twenty steps of a convolution that has the answer before its eyes."
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 1, 5, padding=2)
    density = torch.rand(8, 1, 16, 16)**6
    optimizer = torch.optim.Adam(network.parameters(), .05)
    history = []
    for _ in range(40):
        loss = saliency_loss(network(density).sigmoid().squeeze(1), density.squeeze(1))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        history.append(loss.item())
    assert history[-1] < .6*history[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_under_autocast_on_a_gpu(kind):
    predicted = torch.randn(4, 224, 384, device="cuda", requires_grad=True)
    density = torch.rand(4, 224, 384, device="cuda")**4
    with torch.autocast("cuda", kind): loss = saliency_loss(predicted.to(kind).sigmoid(), density)
    loss.backward()
    assert torch.isfinite(predicted.grad).all()
    assert loss.item() == pytest.approx(saliency_loss(predicted.detach().cpu().sigmoid(), density.cpu()).item(), abs=.01)
