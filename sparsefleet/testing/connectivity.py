"""Checks for connectivities."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.connections import check_sites
from sparsefleet.errors import InvalidMask, UserError
from sparsefleet.plugin import Connectivity
from sparsefleet.rng import Rng
from sparsefleet.testing.allocation import at_most, peak_bytes
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.sample_layer import draw_near, sample_of
from sparsefleet.testing.samples import FAR, FAR_BYTES, SMALL_DENSE, WIDE, WatchedRng, disturb_global_seeds, rounded_to_float32


def draws_exactly(plugin: Connectivity) -> None:
    """Exactly nnz different sites inside the layer, from none to all; as many as are given, where they are."""
    layer, shape = sample = sample_of(plugin)
    for asked in (0, 1, 7, sample.n_sites // 4, sample.n_sites - 1, sample.n_sites):
        nnz = plugin.nnz_of(layer, shape, asked)
        sites = plugin.draw_for(layer, shape, nnz, Rng("draw", nnz))
        _check_sites(
            sites, shape, nnz, "draw distinct flat positions, rng.distinct(nnz, n_out * n_in), and never each site with a probability"
        )


def draws_for_any_shape(plugin: Connectivity) -> None:
    """Layers that widen, of odd sizes and of one unit get exactly nnz different sites too, at every density; a UserError refuses a shape.

    Not asked of connections that are given, whatever the density: they belong to one shape.
    """
    layer, (n_out, n_in) = sample_of(plugin)
    for shape in ((n_in, n_out), (7, 13), (1, 9), (9, 1), (1, 1)):
        n_sites = shape[0] * shape[1]
        for tenths in range(11):
            try:
                if plugin.nnz_of(layer, shape, 0) == plugin.nnz_of(layer, shape, n_sites):
                    continue
                nnz = plugin.nnz_of(layer, shape, n_sites * tenths // 10)
                sites = plugin.draw_for(layer, shape, nnz, Rng("shape", tenths))
            except UserError:
                continue
            _check_sites(
                sites, shape, nnz, "shape is (n_out, n_in): row = flat // n_in, col = flat % n_in; distinct positions at every density"
            )


def draws_anywhere(plugin: Connectivity) -> None:
    """Over 60 draws at a quarter of the sites every unit is connected at least once; not asked where nothing is drawn."""
    layer, shape = sample = sample_of(plugin)
    nnz = sample.n_sites // 4
    if plugin.nnz_of(layer, shape, nnz) != nnz:
        return
    rows, cols = torch.zeros(shape[0]), torch.zeros(shape[1])
    for seed in range(60):
        watched = WatchedRng("anywhere", seed)
        sites = plugin.draw_for(layer, shape, nnz, watched)
        if not watched.used:
            return
        flat = _check_sites(sites, shape, nnz, "rng.distinct(nnz, n_out * n_in), then row = flat // n_in, col = flat % n_in")
        row, col = flat // shape[1], flat % shape[1]
        rows += torch.bincount(row, minlength=shape[0])
        cols += torch.bincount(col, minlength=shape[1])
    never = [
        f"{word} {unit}" for word, counts in (("output", rows), ("input", cols)) for unit in torch.nonzero(counts == 0).flatten().tolist()
    ]
    mend = "random draws end before their upper bound; a sorted list of candidates must be drawn from, not cut off"
    expect(not never, "every unit connected in one of 60 draws", f"never {', '.join(never[:6])}", mend)


def is_deterministic(plugin: Connectivity) -> None:
    """The same stream gives the same topology, whatever the global generators do."""
    layer, shape = sample = sample_of(plugin)
    nnz, drawn = plugin.nnz_of(layer, shape, sample.n_sites // 4), []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        drawn.append(plugin.draw_for(layer, shape, nnz, Rng("draw")))
    expect(torch.equal(*drawn), "equal topologies from equal streams", "they differ", "draw from the rng argument")


def allocates_by_connections(plugin: Connectivity) -> None:
    """1,000 sites of 1,000,000 x 1,000,000 cost kilobytes, and are 1,000 different ones."""
    sample = sample_of(plugin)
    for width, limit in ((SMALL_DENSE, SMALL_DENSE * SMALL_DENSE), (WIDE, 16 * 2**20 + 8 * 2 * WIDE)):
        drawn: list[tuple[tuple[int, int], Tensor] | None] = []

        def draw(width: int = width, drawn: list[tuple[tuple[int, int], Tensor] | None] = drawn) -> None:
            drawn.append(draw_near(plugin, sample, (width, width), 1000, Rng("wide")))

        used = peak_bytes(draw)
        if drawn[0] is None:
            continue
        shape, sites = drawn[0]
        nnz = plugin.nnz_of(sample.layer, shape, 1000)
        limit += 64 * max(0, nnz - 1000)  # where a parameter settles the count
        expect(used < limit, f"less than {limit / 2**20:.0f} MiB at {width:,} x {width:,}", f"{used / 2**20:.1f} MiB", "use rng.distinct")
        _check_sites(sites, shape, nnz, "rng.distinct(nnz, n_out * n_in), in int64 from end to end")


def _check_sites(sites: Tensor, shape: tuple[int, int], nnz: int, mend: str) -> Tensor:
    """``(nnz,)`` flat sites."""
    where = f"{shape[0]:,} x {shape[1]:,}"
    try:
        flat = check_sites(sites, shape, layer="layer")
    except InvalidMask as error:
        fail(f"{nnz:,} different sites inside {where}", error, mend)
    expect(flat.numel() == nnz, f"exactly {nnz:,} sites of {where}", f"{flat.numel():,}", mend)
    return flat


def draws_far_sites_exactly(plugin: Connectivity) -> None:
    """Sites of 100,003 x 99,989 did not go through float32, which rounds positions above 2**24."""
    sample = sample_of(plugin)
    with at_most(FAR_BYTES):
        drawn = draw_near(plugin, sample, FAR, 1000, Rng("far"))
    if drawn is None:
        return
    shape, sites = drawn
    mend = "keep positions in int64 from end to end: .float(), torch.linspace and true division round them; rng.distinct(nnz, n_out * n_in)"
    flat = _check_sites(sites, shape, plugin.nnz_of(sample.layer, shape, 1000), mend)
    expect(not rounded_to_float32(flat), "exact sites", "positions that float32 has rounded", mend)


def draws_anew_for_each_seed(plugin: Connectivity) -> None:
    """Who draws from the stream draws other sites from another one."""
    layer, shape = sample = sample_of(plugin)
    nnz = plugin.nnz_of(layer, shape, sample.n_sites // 4)
    watched = WatchedRng("seed", 1)
    first = plugin.draw_for(layer, shape, nnz, watched)
    second = plugin.draw_for(layer, shape, nnz, Rng("seed", 2))
    differ = not watched.used or not torch.equal(first, second)
    expect(differ, "other sites from another stream", "the same", "use what rng gives: a trial's seed must change the topology")


def has_the_topology_that_it_declares(plugin: Connectivity) -> None:
    """``constant-fan-in``: equally many inputs per unit, up to one; ``row``: whole rows, the last may be a part; ``block``: whole blocks."""
    layer, shape = sample = sample_of(plugin)
    (n_out, n_in), quarter = shape, sample.n_sites // 4
    for asked in (sample.n_sites // 10, quarter, quarter + 1, 2 * quarter + 10):
        nnz = plugin.nnz_of(layer, shape, asked)
        row, col = plugin.draw_for(layer, shape, nnz, Rng("topology", nnz))
        fan_in = torch.bincount(row, minlength=n_out)
        least, most = (int(n) for n in torch.aminmax(fan_in))
        mend = f"draw so, or leave out topology = {plugin.topology!r}: layers and plans rely on it"
        if plugin.topology == "constant-fan-in":
            expect(most - least <= 1, f"a fan-in of {nnz // n_out} to {-(-nnz // n_out)}", f"{least} to {most}", mend)
        elif plugin.topology == "row":
            n_part = int(((fan_in > 0) & (fan_in < n_in)).sum())
            expect(n_part <= 1, "rows with all inputs or none, and one that has a part", f"{n_part} rows with a part", mend)
        elif plugin.topology == "block" and isinstance(getattr(plugin, "size", None), int):
            size = plugin.size  # type: ignore[attr-defined]
            wide = -(-n_in // size)
            held = torch.bincount(row // size * wide + col // size, minlength=-(-n_out // size) * wide)
            site = torch.arange(n_out * n_in)
            whole = torch.bincount(site // n_in // size * wide + site % n_in // size)
            n_part = int(((held > 0) & (held < whole)).sum())
            expect(
                n_part <= 1, f"blocks of {size} x {size} with all connections or none, and one with a part", f"{n_part} with a part", mend
            )


def says_what_settles_the_count(plugin: Connectivity) -> None:
    """The density decides how many connections there are, unless the parameter named in ``settled_by`` is given."""
    fields = type(plugin).model_fields
    known = not plugin.settled_by or plugin.settled_by in fields
    expect(known, f"settled_by to be empty or one of {', '.join(fields)}", repr(plugin.settled_by), "name the parameter")
    if plugin.settled_by and getattr(plugin, plugin.settled_by) is not None:
        return
    layer, shape = sample_of(plugin)
    for asked in (0, 7, 60):
        nnz = plugin.nnz_of(layer, shape, asked)
        expect(nnz == asked, f"nnz_of to give the {asked} that are asked", nnz, 'return asked, or set settled_by = "parameter"')


CHECKS = (
    draws_exactly,
    draws_for_any_shape,
    draws_anywhere,
    is_deterministic,
    draws_anew_for_each_seed,
    draws_far_sites_exactly,
    has_the_topology_that_it_declares,
    says_what_settles_the_count,
    allocates_by_connections,
)
