"""The conformance kit, and a layer of two units by hand."""

import torch
from sparsefleet.nn import CsrLinear
from sparsefleet.testing import conformance, layer_of

from sf_scipy_csr import ScipyCsrLayer, ScipyCsrLinear


@conformance(ScipyCsrLayer(), ScipyCsrLayer(block=3))
def test_conforms(check):
    check()


def test_two_units_by_hand():
    sites = torch.tensor([[0, 0, 1], [0, 2, 1]])  # W = [[2, 0, 3], [0, 5, 0]]
    layer = ScipyCsrLinear(3, 2, bias=False, connections=sites, dtype=torch.float64, block=2)
    layer.write_values(torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64))
    x = torch.tensor([[1.0, 10.0, 100.0], [4.0, 5.0, 6.0]], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.backward(torch.tensor([[1.0, 2.0], [7.0, 11.0]], dtype=torch.float64))
    assert y.tolist() == [[2 * 1 + 3 * 100, 5 * 10], [2 * 4 + 3 * 6, 5 * 5]]
    assert x.grad.tolist() == [[1 * 2, 2 * 5, 1 * 3], [7 * 2, 11 * 5, 7 * 3]]
    assert layer.grad_values().tolist() == [1 * 1 + 7 * 4, 1 * 100 + 7 * 6, 2 * 10 + 11 * 5]


def test_equals_our_csr_and_shares_the_parameters_memory():
    conn = layer_of((4, 6), 8)
    layer, other = ScipyCsrLinear.from_connections(conn, None), CsrLinear.from_connections(conn, None)
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 6)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-12, atol=0)
    values = layer.weight_parameter
    assert layer.matrix(values).data.ctypes.data == values.data_ptr()
