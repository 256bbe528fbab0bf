from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsefleet.measure.cost import cost
from sparsefleet.measure.limits import limit, theory
from sparsefleet.measure.work import Cost, LayerCost, Work
from sparsefleet.trial.build import build_network
from tests.measure.test_peaks import HAND
from tests.measure.trained import spec_of

COUNTED = {"flops_dense", "flops_sparse", "flop_ratio", "bytes_dense", "bytes_sparse", "bytes_ratio"}
KEYS = COUNTED | {"bound", "peaks_id", "limit_s", "dense_limit_s", "roofline_speedup"}


def one_layer(*works: Work, optimizer_bytes: int = 0, kernel: int = 1, working_set: int = 10**12) -> Cost:
    layer = LayerCost("fc", "dense", (1, 1), 1, 1, 1, 1, 1, kernel, works)
    return Cost("step" if len(works) > 1 else "forward", "fp32", (layer,), 1, 1, 100, 100, optimizer_bytes, working_set)


@pytest.mark.parametrize(
    ("work", "bound", "seconds"),
    [
        (Work("forward", 0, 10**10, 0), "dram", 1.0),
        (Work("forward", 2 * 10**12, 10**10, 0), "compute", 2.0),
        (Work("forward", 0, 8 * 10**9, 0, 10**9, 4, 1000), "gather", 1.0),
        (Work("forward", 1, 1, 1), "launch", 1e-6),
    ],
)
def test_each_term_can_decide(work: Work, bound: str, seconds: float) -> None:
    found = limit(one_layer(work), HAND, "forward")
    assert (found.bound, found.layers[0].bound) == (bound, bound)
    assert found.seconds == pytest.approx(seconds, rel=1e-3)


def test_cached_weights_are_not_bound_by_dram() -> None:
    work = Work("forward", 0, 10**9, 0)
    assert limit(one_layer(work, working_set=1000), HAND, "forward").seconds == pytest.approx(0.01)


def test_a_narrow_tile_is_taken_where_it_is_faster() -> None:
    """A row of 1024 bytes from a DRAM-sized table, or four passes of 256-byte rows from a table that the cache holds."""
    whole = Work("forward", 0, 4 * 10**6, 0, 10**6, 1024, 4000)
    tiled = limit(one_layer(whole), HAND, "forward")
    assert tiled.bound == "gather"
    assert tiled.seconds == pytest.approx(4e-3), "at full width it would be 0.25 * 1 + 0.75 * 10 ms"


def test_a_step_adds_its_passes_and_the_optimizer_and_a_forward_pass_is_part_of_it() -> None:
    works = [Work("forward", 10**12, 0, 0), Work("grad_input", 10**12, 0, 0), Work("grad_weight", 10**12, 0, 0)]
    step = one_layer(*works, optimizer_bytes=10**11)
    found = limit(step, HAND, "step")
    assert found.seconds == pytest.approx(3 + 5, rel=1e-3)
    assert found.optimizer_s == pytest.approx(5, rel=1e-3)
    assert found.bound == "dram" and found.layers[0].bound == "compute"
    assert limit(step, HAND, "forward").seconds == pytest.approx(1)


def test_a_fast_convolution_is_not_called_impossible() -> None:
    work = Work("forward", 4 * 10**12, 0, 0)
    assert limit(one_layer(work, kernel=9), HAND, "forward").seconds == pytest.approx(1)


def test_an_unknown_precision_is_held_against_fp32() -> None:
    odd = replace(one_layer(Work("forward", 10**12, 0, 0)), precision="tf32")
    assert limit(odd, HAND, "forward").seconds == pytest.approx(1)


def test_theory_has_exactly_the_agreed_keys_and_leaves_out_what_it_cannot_know() -> None:
    x = torch.ones(4, 64)
    sparse = cost(build_network(spec_of("csr", 0.1)).module, x, "step", "sgd-momentum", "fp32")
    dense = cost(build_network(spec_of("dense", 1.0)).module, x, "step", "sgd-momentum", "fp32")
    whole = theory(sparse, dense, HAND, "step")
    assert set(whole) == KEYS
    assert whole["flop_ratio"] == dense.flops / sparse.flops
    assert whole["bytes_ratio"] == dense.stored_bytes / sparse.stored_bytes
    assert whole["roofline_speedup"] == limit(dense, HAND, "step").seconds / limit(sparse, HAND, "step").seconds
    assert set(theory(sparse, None, HAND, "step")) == {"flops_sparse", "bytes_sparse", "limit_s", "bound", "peaks_id"}


def test_theory_of_a_network_without_counted_layers() -> None:
    empty = cost(nn.Sequential(nn.ReLU()), torch.ones(2, 2), "forward", "sgd", "fp32")
    found = theory(empty, empty, HAND, "forward")
    assert found["limit_s"] == 0.0
    assert not {"flop_ratio", "bytes_ratio", "roofline_speedup"} & set(found)
