"""The kit names faults of rewirers that show on layers that are denser at the start, have a constant fan-in, or are nearly full."""

import pytest
from faults import assert_named, failed_checks

from sparsefleet import Rewirer, Update, UserError, keep_best


class _Rewirer(Rewirer):
    """Wrong in one way."""

    name = "wrong"


class StaysDense(_Rewirer):  # starts dense and does not say that nnz varies: dense to the end
    def first_density(self, density):
        return 1.0


class StartsWithNothing(_Rewirer):  # a share that can be 0
    varies_nnz = True

    def first_density(self, density):
        return density - 0.01


class StartsWithInts(_Rewirer):  # a count where a density is asked
    varies_nnz = True

    def first_density(self, density):
        return None


class PrunesByLayer(_Rewirer):  # the smallest of the layer, whatever the units keep
    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        kept = conn.select(keep_best(conn.weight.abs(), conn.nnz - n_drop))
        keep = keep_best(conn.weight.abs(), conn.nnz - n_drop)
        flat = kept._absent_at(rng.distinct(n_drop, kept.n_sites - kept.nnz))  # at random sites of the layer
        return Update(keep, flat)


class ShrinksByOne(_Rewirer):  # whatever the units need: random_absent raises
    varies_nnz = True

    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        keep = keep_best(conn.weight.abs(), conn.nnz - n_drop)
        return Update(keep, conn.select(keep).random_absent(max(0, n_drop - 1), rng))


class GrowsBeforeItDrops(_Rewirer):  # looks for sites while the dropped ones still stand
    needs_absent_grad = varies_nnz = True
    fits_tiles = fits_fan_in = False

    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        return Update(keep_best(conn.weight.abs(), conn.nnz - n_drop), conn.best_absent(n_drop))


class WritesDenseState(_Rewirer):  # an average of its own, moved in update
    needs_dense = True

    def update(self, conn, progress, rng, n_target):
        conn.dense.state["mean"] = conn.dense.weight * 0.9
        return super().update(conn, progress, rng, n_target)


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        (StaysDense, "declares_another_start", "varies_nnz = True"),
        (StartsWithNothing, "declares_another_start", "density 0"),
        (StartsWithInts, "declares_another_start", "None"),
        (PrunesByLayer, "fits_a_constant_fan_in", "keep_best_per_row"),
        (ShrinksByOne, "fits_a_constant_fan_in", "fits_fan_in = False"),
        (GrowsBeforeItDrops, "grows_where_it_has_dropped", "only the 5 that were absent"),
        (WritesDenseState, "leaves_its_input_alone", "dense.state['mean']"),
    ],
)
def test_each_fault_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class FromAbove(_Rewirer):
    """A right one: it starts at a half, refuses what is denser, and does not care for a fan-in."""

    varies_nnz = True
    fits_tiles = fits_fan_in = False

    def first_density(self, density):
        if density > 0.5:
            raise UserError("it starts at 0.5")
        return 0.5

    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        keep = keep_best(conn.weight.abs(), min(n_target, conn.nnz) - n_drop)
        return Update(keep, conn.select(keep).random_absent(n_drop, rng))


def test_without_a_fault_nothing_fails():
    assert failed_checks(FromAbove(), None) == {}
