"""The conformance kit, and the definitions of arXiv 1905.00416 worked out by hand."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from sparsefleet import Rng, UserError
from sparsefleet.testing import conformance

from sf_radix import RadixConnectivity


@conformance(RadixConnectivity(), RadixConnectivity(radices=(("fc1", 4), ("fc2", 4))))
def test_conforms(check):
    check()


def adjacency(plugin: RadixConnectivity, layer: str, n_in: int, n_out: int) -> torch.Tensor:
    """Inputs above outputs, as the paper writes it."""
    row, col = plugin.draw_for(layer, (n_out, n_in), plugin.nnz_of(layer, (n_out, n_in), 0), Rng("test"))
    matrix = torch.zeros(n_in, n_out, dtype=torch.float64)
    matrix[col, row] += 1
    return matrix


def test_two_digits_of_radix_2_by_hand():
    plugin = RadixConnectivity(radices=(("a", 2), ("b", 2)))  # N' = 4: shifts 0 and 1, then 0 and 2
    first = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
    second = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert adjacency(plugin, "a", 4, 4).tolist() == first
    assert adjacency(plugin, "b", 4, 4).tolist() == second
    assert (torch.tensor(first) @ torch.tensor(second) == 1).all()  # one path from every input to every output


def test_radices_kronecker_dense_network():
    radices, widths = {"a": 3, "b": 2, "c": 2, "d": 6}, [2, 1, 3, 2, 1]  # systems (3, 2, 2) and (6), N' = 12
    plugin = RadixConnectivity(radices=tuple(radices.items()), base=12)
    turned = torch.eye(12, dtype=torch.float64).roll(1, dims=1)  # P: u to u + 1
    paths = torch.eye(24, dtype=torch.float64)
    for (layer, radix), place, (d_in, d_out) in zip(radices.items(), [1, 3, 6, 1], pairwise(widths), strict=True):
        small = sum(torch.linalg.matrix_power(turned, j * place) for j in range(radix))
        wanted = torch.kron(torch.ones(d_in, d_out, dtype=torch.float64), small)
        got = adjacency(plugin, layer, 12 * d_in, 12 * d_out)
        assert torch.equal(got, wanted)
        assert got.mean() == pytest.approx(radix / 12)
        paths = paths @ got
    assert (paths == 6 * 1 * 3 * 2).all()  # symmetric: 6 ways through the digits, times the inner widths


@pytest.mark.parametrize("shape", [(9, 9), (12, 5), (5, 12)])
def test_bands_are_exact_and_even_on_the_wider_side(shape):
    for nnz in range(shape[0] * shape[1] + 1):
        row, col = RadixConnectivity().draw_for("fc1", shape, nnz, Rng("test"))
        assert len(set(zip(row.tolist(), col.tolist(), strict=True))) == nnz
        fan = torch.bincount(row if shape[0] >= shape[1] else col, minlength=max(shape))
        assert fan.max() - fan.min() <= 1


def test_refuses_what_is_no_radix_net():
    plugin = RadixConnectivity(radices=(("a", 4), ("b", 4)))
    with pytest.raises(UserError, match="multiples of 16"):
        plugin.nnz_of("a", (32, 40), 0)
    with pytest.raises(UserError, match="sparse layers"):
        plugin.check_layers(["b", "a"])
    with pytest.raises(ValidationError, match="multiply to base"):
        RadixConnectivity(radices=(("a", 4), ("b", 3)), base=16)
