"""Calls every kernel at the sizes where its loops end: run by test_sanitizer.py in a process where the library checks its own addresses.

``python every_kernel.py LIBRARY [damaged]``
"""

import sys
from pathlib import Path

import torch

from sparsefleet import kernels

kernels.LIBRARY = Path(sys.argv[1])

from dense_reference import agree_with_dense, constant_pattern, free_pattern  # noqa: E402

from sparsefleet.ops import layer_norm, merge_sites, native, pattern, pattern_of, positions, sparse_linear, split_sites, taken  # noqa: E402
from sparsefleet.rng import Rng  # noqa: E402

BATCHES = (1, 2, 3, 4, 5, 16, 63, 64, 65, 130)
called = set()
plain_call = native._call


def call(name, *arguments):
    called.add(name)
    plain_call(name, *arguments)


def corners(n_out, n_in):
    """The first and the last column, the last one also in the last row; no other row has an entry."""
    return pattern_of(torch.tensor([1, 1, n_out - 1]), torch.tensor([0, n_in - 1, n_in - 1]), (n_out, n_in))


def products():
    for panel_bytes in (pattern._PANEL_BYTES, 400):
        pattern._PANEL_BYTES = panel_bytes
        many, few, constant = free_pattern(90, 7, 400), free_pattern(37, 53, 40), constant_pattern(60, 9, 8)
        assert (many.panels, constant.panels) == ((1, 1) if panel_bytes > 400 else (4, 4))
        for one in (many, few, constant, corners(9, 17), corners(5, 3)):
            assert torch.equal(torch.sort(one.t_pos).values, torch.arange(one.nnz))
            for batch in BATCHES:
                for copy in (0, 1):
                    native.library().sf_place(copy, copy)
                    agree_with_dense(one, batch, torch.float32)
                agree_with_dense(one, batch, torch.float64)
    called.add("sf_place")


def on_threads():
    one = free_pattern(300, 500, 120_000)
    for batch in (1, 3, 65):
        agree_with_dense(one, batch, torch.float32)


def norms():
    for features, batch in ((1, 2), (20, 5), (257, 16), (300, 65), (1000, 130)):
        x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((features, batch), (features,), (features,)))
        for relu in (False, True):
            layer_norm(x.t(), weight, bias, 1e-5, relu).square().sum().backward()


def topology():
    for n, n_fresh in ((1, 1), (1, 0), (7, 3), (300, 100), (120_000, 30_000)):
        flat, high = Rng("flat", n).distinct(n, 3 * n), 3 * n
        fresh = torch.arange(high)[~torch.isin(torch.arange(high), flat)][-n_fresh:] if n_fresh else flat[:0]
        for kept in (0.0, 0.7, 1.0):
            sites, source, twice = merge_sites(flat, Rng("keep", n).uniform(n) < kept, fresh)
            assert not twice
            taken(torch.ones(n), source.int())
            split_sites(sites, (3, n))
        positions(flat, torch.arange(high + 1))


def the_rest():
    for shape in ((1, 7), (16, 16), (33, 70), (130, 1000)):
        assert torch.equal(native.transposed(torch.ones(shape)), torch.ones(shape[::-1]))
    for width in (16, 64, 256):
        native.gather(torch.ones(50, width), Rng("gather").integers(33, 50).int())
    native.multiply_add(3)
    free_pattern(9, 11, 30).flat()


if sys.argv[2:] == ["damaged"]:
    one = free_pattern(37, 53, 261)
    one.col[-1] = 53  # a column behind the last
    sparse_linear(torch.ones(16, 53), torch.ones(261), one)
else:
    native._call = call
    torch.set_num_threads(2)
    for part in (products, on_threads, norms, topology, the_rest):
        part()
    assert called == set(native._SIGNATURES), called ^ set(native._SIGNATURES)
