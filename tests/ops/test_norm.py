"""Layer normalisation of feature-major activations against torch's in float64."""

import pytest
import torch
from torch.nn import functional as F

from sparsefleet.ops import layer_norm, native

KERNELS = pytest.param("kernels", marks=pytest.mark.skipif(bool(native.why_not()), reason=f"kernels: {native.why_not()}"))


@pytest.fixture(params=[KERNELS, "torch"], autouse=True)
def engine(request, monkeypatch):
    """With the C kernels, and as where there are none."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    return request.param


def sample(batch, features, offset=0.0, dtype=torch.float32):
    gen = torch.Generator().manual_seed(batch)
    x = (torch.randn(features, batch, generator=gen, dtype=torch.float64) + offset).to(dtype).t()
    affine = [torch.randn(features, generator=gen, dtype=torch.float64).to(dtype) for _ in range(2)]
    return [t.requires_grad_() for t in (x, *affine)]


def agree_with_torch(batch, features, relu):
    """Output and every gradient."""
    leaves = sample(batch, features, offset=3.0)
    y = layer_norm(*leaves, 1e-5, relu)
    grad = torch.randn(features, batch, generator=torch.Generator().manual_seed(1)).t()
    y.backward(grad)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    reference = F.layer_norm(wide[0], (features,), wide[1], wide[2], 1e-5)
    reference = reference.relu() if relu else reference
    reference.backward(grad.double())
    assert y.stride() == leaves[0].stride() == (1, batch)
    torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(leaves, wide, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("batch", "features"), [(2, 20), (7, 20), (16, 300), (50, 333), (64, 1000), (130, 257)])
def test_output_and_gradients(batch, features, relu):
    agree_with_torch(batch, features, relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("batch", "features"), [(2, 60_001), (130, 1000)])
def test_output_and_gradients_on_threads(batch, features, relu, threads):
    """From 100,000 elements on the features are shared out."""
    agree_with_torch(batch, features, relu)


def test_a_large_mean_costs_no_digits():
    """The deviations are summed around the mean, not as a difference of two large sums."""
    leaves = sample(16, 50_000, offset=1000.0)
    found = layer_norm(*leaves)
    reference = F.layer_norm(leaves[0].double(), (50_000,), leaves[1].double(), leaves[2].double())
    torch.testing.assert_close(found.double(), reference, rtol=1e-3, atol=1e-3)


def test_not_a_number_is_not_hidden_by_the_relu():
    leaves = sample(4, 8)
    with torch.no_grad():
        leaves[0][1, 3] = float("nan")
    assert bool(layer_norm(*leaves, 1e-5, True)[1].isnan().all())


@pytest.mark.parametrize("x", [torch.randn(5, 12), torch.randn(3, 5, 12), torch.randn(5, 12, dtype=torch.float64), torch.randn(1, 12)])
def test_everything_else_goes_through_torch(x):
    weight, bias = torch.rand(12, dtype=x.dtype), torch.rand(12, dtype=x.dtype)
    assert torch.equal(layer_norm(x, weight, bias, 1e-5, True), F.layer_norm(x, (12,), weight, bias).relu())


def test_opcheck():
    leaves = sample(6, 20)
    for relu in (False, True):
        torch.library.opcheck(torch.ops.sparsefleet.layer_norm.default, (*leaves, 1e-5, relu))
