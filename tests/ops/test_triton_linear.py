"""The Triton kernels against float64. On a GPU: ``pytest -m gpu tests/ops``; ``test_triton`` runs the same bodies in Triton's interpreter."""

import os

import pytest
import torch

from sparsefleet.ops import linear, triton_linear
from sparsefleet.ops.pattern import Pattern, pattern_of
from sparsefleet.ops.triton_linear import triton_backward, triton_forward, triton_gather

BATCHES = (1, 2, 3, 4, 5, 16, 33, 64, 130)
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8}
"""Largest error over the largest entry. A GPU rounds bfloat16 to nearest; the interpreter cuts off, so that it errs by twice as much."""


@pytest.fixture(params=[*(["cpu"] if os.environ.get("TRITON_INTERPRET") == "1" else []), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


class Problem:
    """A matrix with an empty row and an empty column, or of constant fan-in; inputs, and the answers in float64."""

    def __init__(self, device, n_out=13, n_in=18, batch=5, fan_in=None, dtype=torch.float32, values_dtype=None):
        gen = torch.Generator().manual_seed(n_out * n_in + batch)
        if fan_in is None:
            present = torch.rand(n_out, n_in, generator=gen) < 0.4
            present[min(2, n_out - 1)], present[:, min(3, n_in - 1)] = False, False
        else:
            chosen = torch.rand(n_out, n_in, generator=gen).topk(fan_in, dim=1).indices
            present = torch.zeros(n_out, n_in, dtype=torch.bool).scatter(1, chosen, True)
        row, col = present.nonzero().t()
        wide = dtype if dtype == torch.float64 else torch.float32

        def draw(*shape, dtype=dtype):
            return torch.randn(*shape, generator=gen, dtype=wide).to(dtype)

        values, bias = draw(row.numel(), dtype=values_dtype or wide), draw(n_out, dtype=wide)
        x, dy = draw(n_in, batch), draw(n_out, batch)
        weight = torch.zeros(n_out, n_in, dtype=torch.float64).index_put((row, col), values.double())
        self.pattern = pattern_of(row.to(device), col.to(device), (n_out, n_in), fan_in=fan_in)
        self.values, self.bias, self.x, self.dy = (t.to(device) for t in (values, bias, x, dy))
        self.product = weight @ x.double()
        self.y = self.product + bias.double()[:, None]
        self.dx = weight.t() @ dy.double()
        self.dw = (dy.double() @ x.double().t())[row, col]

    def forward(self):
        return triton_forward(self.x, self.values, self.pattern, self.bias)

    def backward(self, need_x=True, need_w=True):
        return triton_backward(self.dy, self.x, self.values, self.pattern, need_x, need_w)


def error(got, wanted):
    assert got.shape == wanted.shape
    assert got.is_contiguous()
    difference = (got.cpu().double() - wanted).abs()
    cut_off = 2 if got.dtype == torch.bfloat16 and got.device.type == "cpu" else 1
    return float(difference.max() / wanted.abs().max()) / cut_off


@pytest.mark.parametrize("fan_in", [None, 7])
@pytest.mark.parametrize("batch", BATCHES)
def test_output_and_gradients_for_every_size_of_batch(device, batch, fan_in):
    problem = Problem(device, batch=batch, fan_in=fan_in)
    assert error(problem.forward(), problem.y) < ROUNDING[torch.float32]
    dx, dw = problem.backward()
    assert error(dx, problem.dx) < ROUNDING[torch.float32]
    assert error(dw, problem.dw) < ROUNDING[torch.float32]


@pytest.mark.parametrize(("n_out", "n_in", "fan_in"), [(1, 1, 1), (1, 9, 9), (40, 3, 1), (3, 70, 17), (5, 70, 33), (2, 300, 260)])
@pytest.mark.parametrize("batch", [2, 12])
def test_odd_sizes_and_fan_ins(device, n_out, n_in, fan_in, batch):
    problem = Problem(device, n_out, n_in, batch, fan_in)
    assert error(problem.forward(), problem.y) < ROUNDING[torch.float32]
    dx, dw = problem.backward()
    assert error(dx, problem.dx) < ROUNDING[torch.float32]
    assert error(dw, problem.dw) < ROUNDING[torch.float32]


@pytest.mark.parametrize("batch", [3, 20, 130])
@pytest.mark.parametrize("fan_in", [None, 7])
def test_bfloat16_activations_with_float32_values(device, batch, fan_in):
    problem = Problem(device, batch=batch, fan_in=fan_in, dtype=torch.bfloat16)
    y, (dx, dw) = problem.forward(), problem.backward()
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert error(y, problem.y) < ROUNDING[torch.bfloat16]
    assert error(dx, problem.dx) < ROUNDING[torch.bfloat16]
    assert error(dw, problem.dw) < ROUNDING[torch.float32]  # products of bfloat16 are exact in float32, which sums them


def test_values_of_half_width_sum_their_gradient_over_all_batch_tiles_before_rounding(device):
    problem = Problem(device, batch=130, values_dtype=torch.bfloat16)
    _, dw = problem.backward()
    assert dw.dtype == torch.bfloat16
    assert bool(((dw.cpu().double() - problem.dw).abs() <= 2**-8 * problem.dw.abs() + 1e-5).all())


@pytest.mark.parametrize("batch", [2, 8])
def test_float64_throughout(device, batch):
    problem = Problem(device, batch=batch, dtype=torch.float64)
    dx, dw = problem.backward()
    assert error(problem.forward(), problem.y) < ROUNDING[torch.float64]
    assert error(dx, problem.dx) < ROUNDING[torch.float64]
    assert error(dw, problem.dw) < ROUNDING[torch.float64]


@pytest.mark.parametrize("batch", [4, 70])
@pytest.mark.parametrize("fan_in", [None, 7])
def test_one_gradient_alone_and_no_bias(device, batch, fan_in):
    problem = Problem(device, batch=batch, fan_in=fan_in)
    dx, nothing = problem.backward(need_w=False)
    assert nothing is None
    assert error(dx, problem.dx) < ROUNDING[torch.float32]
    nothing, dw = problem.backward(need_x=False)
    assert nothing is None
    assert error(dw, problem.dw) < ROUNDING[torch.float32]
    assert problem.backward(need_x=False, need_w=False) == (None, None)
    y = triton_forward(problem.x, problem.values, problem.pattern, None)
    assert error(y, problem.product) < ROUNDING[torch.float32]


@pytest.mark.parametrize("layout", ["row-major", "feature-major"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_the_operator_hands_all_of_it_on(device, layout, wanted, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(linear, "engine", lambda device: linear.Engine("triton", ""))
    problem = Problem(device, batch=6, fan_in=5, dtype=torch.float64)
    x = problem.x.t().contiguous() if layout == "row-major" else problem.x.t()
    x, values = x.requires_grad_(wanted[0]), problem.values.requires_grad_(wanted[1])
    y = linear.sparse_linear(x, values, problem.pattern, problem.bias)
    assert error(y.detach().t(), problem.y) < ROUNDING[torch.float64]
    y.backward(problem.dy.t())
    if wanted[0]:
        assert error(x.grad.t().contiguous(), problem.dx) < ROUNDING[torch.float64]
    if wanted[1]:
        assert error(values.grad, problem.dw) < ROUNDING[torch.float64]


@pytest.mark.parametrize("batch", [3, 9])
def test_what_is_not_connected_is_not_touched(device, batch):
    problem = Problem(device, batch=batch)
    problem.x[3], problem.dy[2] = float("nan"), float("inf")  # the unit without a connection out, and the one without any in
    y, (dx, dw) = problem.forward(), problem.backward()
    assert all(bool(torch.isfinite(t).all()) for t in (y, dx, dw))
    assert torch.equal(y[2], problem.bias[2].expand(batch))
    assert torch.equal(dx[3], torch.zeros_like(dx[3]))


@pytest.mark.parametrize("batch", [4, 70])
def test_the_same_bits_every_time(device, batch):
    problem = Problem(device, batch=batch)
    first = (problem.forward(), *problem.backward())
    for _ in range(3 if device == "cuda" else 1):
        again = (problem.forward(), *problem.backward())
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_without_connections_or_batch(device):
    problem = Problem(device, n_out=1, n_in=1)  # its only row and column are empty
    assert problem.values.numel() == 0
    assert torch.equal(problem.forward(), problem.bias[:, None].expand(1, 5))
    dx, dw = problem.backward()
    assert torch.equal(dx, torch.zeros_like(dx))
    assert dw.shape == (0,)
    problem = Problem(device, batch=0)
    dx, dw = problem.backward()
    assert (problem.forward().shape, dx.shape) == ((13, 0), (18, 0))
    assert torch.equal(dw, torch.zeros_like(dw))


@pytest.mark.parametrize("width", [4, 16, 64, 256])
def test_gathered_rows_are_summed_by_bags(device, width):
    gen = torch.Generator().manual_seed(width)
    table, order = torch.randn(50, width, generator=gen), torch.randint(50, (3 * 16,), generator=gen).int()
    got = triton_gather(table.to(device), order.to(device), 16)
    assert error(got, table.double()[order.long()].view(3, 16, width).sum(1)) < ROUNDING[torch.float32]


def far(device, n_far, batch):
    """Connections of units 0 and 1 with three units near the end of ``n_far``, whose activations lie beyond 2^31 elements."""
    index = torch.tensor([n_far - 5, n_far - 2, n_far - 1, n_far - 5, n_far - 3, n_far - 1], dtype=torch.int32, device=device)
    table = torch.empty(n_far, batch, dtype=torch.bfloat16, device=device)  # 4 GiB, of which three rows are ever touched
    table[-5:] = torch.arange(5 * batch, device=device).view(5, batch).remainder(7).to(torch.bfloat16)
    near = torch.arange(2 * batch, device=device).view(2, batch).remainder(5).to(torch.bfloat16)
    values = torch.arange(1.0, 7.0, device=device)
    return index, table, near, values


@pytest.mark.parametrize("batch", [4, 64])
def test_inputs_beyond_2_to_31_elements(device, batch):
    n_far = 2**31 // batch + 8
    index, x, dy, values = far(device, n_far, batch)
    none = torch.empty(0, dtype=torch.int32, device=device)
    pattern = Pattern((2, n_far), 3, none, index, 1, none, none, none)
    dense = torch.zeros(2, 5, dtype=torch.float64)
    row, col = torch.tensor([0, 0, 0, 1, 1, 1]), (index.cpu() - (n_far - 5)).long()
    dense[row, col] = values.cpu().double()
    tail = x[-5:].cpu().double()
    assert error(triton_forward(x, values, pattern), dense @ tail) < ROUNDING[torch.bfloat16]
    _, dw = triton_backward(dy, x, values, pattern, need_x=False, need_w=True)
    assert error(dw, (dy.cpu().double() @ tail.t())[row, col]) < ROUNDING[torch.float32]


@pytest.mark.parametrize("batch", [4, 64])
def test_output_gradients_beyond_2_to_31_elements(device, batch):
    n_far = 2**31 // batch + 8
    index, dy, x, values = far(device, n_far, batch)
    pointer = torch.tensor([0, 3, 6], dtype=torch.int32, device=device)
    position = torch.tensor([0, 2, 4, 1, 3, 5], dtype=torch.int32, device=device)
    crow = torch.empty(0, dtype=torch.int32, device=device)
    pattern = Pattern((n_far, 2), None, crow, index, 1, pointer, index, position)
    dense = torch.zeros(5, 2, dtype=torch.float64)
    col, row = torch.tensor([0, 0, 0, 1, 1, 1]), (index.cpu() - (n_far - 5)).long()
    dense[row, col] = values.cpu()[position.cpu().long()].double()
    tail = dy[-5:].cpu().double()
    need_w = batch > triton_linear.SMALL_BATCH  # the small kernel for the values walks all 2^29 rows
    dx, dw = triton_backward(dy, x, values, pattern, need_x=True, need_w=need_w)
    assert error(dx, dense.t() @ tail) < ROUNDING[torch.bfloat16]
    if dw is not None:
        wanted = torch.empty(6, dtype=torch.float64)
        wanted[position.cpu().long()] = (x.cpu().double() @ tail.t())[col, row]
        assert error(dw, wanted) < ROUNDING[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_captured_graph_computes_what_its_inputs_hold_at_replay(batch):
    problem = Problem("cuda", 300, 400, batch, fan_in=20)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles
        problem.forward(), problem.backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = (problem.forward(), *problem.backward())
    problem.x.mul_(2.0)
    problem.dy.neg_()
    graph.replay()
    wanted = (problem.forward(), *problem.backward())
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, wanted, strict=True))
