"""The kit names each fault of connectivities that are wrong as public implementations are wrong."""

import pytest
import torch
from faults import assert_named, failed_checks
from pydantic import Field

from sparsefleet import Connectivity, UserError
from sparsefleet.testing import run_checks


class _Connectivity(Connectivity):
    """Wrong in one way."""

    name = "wrong"

    def draw(self, shape, nnz, rng):
        flat = rng.distinct(nnz, shape[0] * shape[1])
        return torch.stack([flat // shape[1], flat % shape[1]])


class Bernoulli(_Connectivity):  # each site with a probability: the count drifts, and a layer may have none
    def draw(self, shape, nnz, rng):
        n_sites = shape[0] * shape[1]
        flat = torch.nonzero(rng.uniform(n_sites) < nnz / n_sites).flatten()
        return torch.stack([flat // shape[1], flat % shape[1]])


class WithReplacement(_Connectivity):  # sites drawn twice, as in DEEP R's first script: fewer connections than asked
    def draw(self, shape, nnz, rng):
        return torch.stack([rng.integers(nnz, shape[0]), rng.integers(nnz, shape[1])])


class Doubled(_Connectivity):  # both directions of every edge of a graph
    def draw(self, shape, nnz, rng):
        return super().draw(shape, nnz, rng).repeat(1, 2)


class TooFew(_Connectivity):  # torch.unique after the draw: lies about its density
    def draw(self, shape, nnz, rng):
        return torch.unique(torch.stack([rng.integers(nnz, shape[0]), rng.integers(nnz, shape[1])]), dim=1)


class Unseeded(_Connectivity):  # torch.randperm without a generator
    def draw(self, shape, nnz, rng):
        flat = torch.randperm(shape[0] * shape[1])[:nnz]
        return torch.stack([flat // shape[1], flat % shape[1]])


class DenseMask(_Connectivity):  # a permutation of all sites
    def draw(self, shape, nnz, rng):
        flat = torch.argsort(rng.uniform(shape[0] * shape[1]), stable=True)[:nnz]
        return torch.stack([flat // shape[1], flat % shape[1]])


class SinglePositions(_Connectivity):  # torch.linspace or .float() on flat positions
    def draw(self, shape, nnz, rng):
        flat = rng.distinct(nnz, shape[0] * shape[1])
        if shape[0] * shape[1] > 2**24:
            flat = flat.float().long().clamp(max=shape[0] * shape[1] - 1)
        return torch.stack([flat // shape[1], flat % shape[1]])


class OneSeed(_Connectivity):  # draws, and then does not use what it drew
    def draw(self, shape, nnz, rng):
        rng.uniform(1)
        flat = torch.arange(nnz)
        return torch.stack([flat // shape[1], flat % shape[1]])


class CutsTheList(_Connectivity):  # the first of sorted candidates: late units stay without connections
    def draw(self, shape, nnz, rng):
        n_sites = shape[0] * shape[1]
        flat = rng.distinct(min(n_sites, 2 * nnz), n_sites).sort().values[:nnz]
        return torch.stack([flat // shape[1], flat % shape[1]])


class HalfTheColumns(_Connectivity):  # randint(0, n_in // 2) where it suffices
    def draw(self, shape, nnz, rng):
        half = max(1, shape[1] // 2)
        flat = rng.distinct(nnz, shape[0] * (half if nnz <= shape[0] * half else shape[1]))
        wide = half if nnz <= shape[0] * half else shape[1]
        return torch.stack([flat // wide, flat % wide])


class DoubledWhenDense(_Connectivity):  # gives up looking for free sites above 85 %
    def draw(self, shape, nnz, rng):
        sites = super().draw(shape, nnz, rng)
        if 0.85 < nnz / (shape[0] * shape[1]) < 0.95:
            sites[:, 1] = sites[:, 0]
        return sites


class Transposed(_Connectivity):  # (n_in, n_out) taken for (n_out, n_in): right as long as layers narrow
    def draw(self, shape, nnz, rng):
        sites = super().draw(shape, nnz, rng)
        return sites.flip(0) if shape[0] > shape[1] else sites


class NoConstantFanIn(_Connectivity):  # says constant fan-in and draws anywhere
    topology = "constant-fan-in"


class NoRows(_Connectivity):  # says whole rows and draws anywhere
    topology = "row"


class NoBlocks(_Connectivity):  # says whole blocks and draws anywhere
    topology = "block"
    size: int = Field(4, ge=1, le=64, description="units per side")


class SettlesInSilence(_Connectivity):  # rounds to a whole fan-in, and no parameter says so
    def nnz_of(self, layer, shape, asked):
        return asked // shape[0] * shape[0]


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        # counts: lying about its density
        (Bernoulli, "draws_exactly", "with a probability"),
        (WithReplacement, "draws_exactly", "duplicates"),
        (Doubled, "draws_exactly", "duplicates"),
        (TooFew, "draws_exactly", "exactly 60"),
        (DoubledWhenDense, "draws_for_any_shape", "duplicates"),
        (Transposed, "draws_for_any_shape", "(n_out, n_in)"),
        # where it never draws
        (CutsTheList, "draws_anywhere", "output 11"),
        (HalfTheColumns, "draws_anywhere", "never input 10"),
        # non-deterministic, or always the same
        (Unseeded, "is_deterministic", "rng argument"),
        (OneSeed, "draws_anew_for_each_seed", "seed"),
        # densifying, float32 positions
        (DenseMask, "allocates_by_connections", "rng.distinct"),
        (SinglePositions, "draws_far_sites_exactly", "float32"),
        # lying about its topology and its count
        (NoConstantFanIn, "has_the_topology_that_it_declares", "fan-in"),
        (NoRows, "has_the_topology_that_it_declares", "rows with a part"),
        (NoBlocks, "has_the_topology_that_it_declares", "with a part"),
        (SettlesInSilence, "says_what_settles_the_count", "settled_by"),
    ],
)
def test_each_fault_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


def test_without_a_fault_nothing_fails():
    assert failed_checks(_Connectivity(), None) == {}


class OneShape(_Connectivity):
    """A right one, for layers of 12 x 20 alone."""

    def draw(self, shape, nnz, rng):
        if shape != (12, 20):
            raise UserError("only 12 x 20", fix="connectivity random")
        return super().draw(shape, nnz, rng)


def test_other_shapes_may_be_refused():
    assert failed_checks(OneShape(), None) == {}


class Multiples(_Connectivity):  # right, and refuses the kit's first shape
    """For wide layers only."""

    multiple: int = Field(16, ge=1, description="both widths are multiples of it")

    def nnz_of(self, layer, shape, asked):
        if any(width % self.multiple for width in shape):
            raise UserError(f"{layer}: both widths must be multiples of {self.multiple}, got {shape}")
        return asked


class Named(Multiples):  # knows its layers by name
    layers: dict[str, int] = Field({"fc1": 100}, description="connections by layer")
    settled_by = "layers"

    def nnz_of(self, layer, shape, asked):
        super().nnz_of(layer, shape, asked)
        return self.layers[layer]


class Told(Multiples):  # no shape that the kit tries, but it says which
    def sample_layer(self):
        return "fc1", (2 * self.multiple, self.multiple)


@pytest.mark.parametrize("plugin", [Multiples(), Named(), Told(multiple=17)], ids=repr)
def test_a_connectivity_that_refuses_some_layers_is_judged_by_others(plugin):
    assert failed_checks(plugin, "") == {}


def test_one_that_refuses_every_layer_is_told_how_to_name_one():
    ((name, problem),) = ((one.check, one.problem) for one in run_checks(Multiples(multiple=17)) if one.problem)
    assert name == "runs"
    assert "refused: layer: both widths must be multiples of 17, got (12, 20)" in problem
    assert "def sample_layer(self)" in problem
    assert "Traceback" not in problem
