"""Masks and indices that cannot be right, handed to the layers themselves: as a state dict, as connections, as a mask, as what stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import InvalidMask, PluginError, UserError
from sparsefleet.nn.csr import CsrLinear
from sparsefleet.nn.masked import MaskedLinear, MaskedModule
from sparsefleet.nn.module import remap_sites
from sparsefleet.trial.masks import pack_masks

N_OUT, N_IN = 12, 9
_WRONG_INDEX = (torch.float32, torch.float64, torch.float16, torch.bool, torch.complex64)
_Attempt = Callable[[], object]


def attempt(rng: random.Random) -> tuple[str, _Attempt]:
    """What is wrong, and what hands it to the product; a layer that has refused must compute what it did before, else this raises."""
    door = rng.choice((_index, _index, _connections, _mask, _mask_state, _keep, _packed))
    kind, act = door(rng)
    return f"{door.__name__[1:]}/{kind}", act


def is_refusal(error: Exception) -> bool:
    """True for the product's own errors, and for torch's of a state dict, which carries them."""
    return isinstance(error, (InvalidMask, UserError, PluginError)) or str(error).startswith("Error(s) in loading state_dict")


def _layer(kind: type[Any], seed: int) -> Any:
    return kind(N_IN, N_OUT, 0.5, seed=seed)


def _loaded(layer: nn.Module, state: dict[str, Any]) -> _Attempt:
    x = torch.ones(3, N_IN)
    before = layer(x).detach().clone()

    def load() -> None:
        try:
            layer.load_state_dict(state)
        finally:
            if not torch.equal(layer(x), before):
                raise AssertionError("what was refused has changed the layer")

    return load


def _index(rng: random.Random) -> tuple[str, _Attempt]:
    """The invariants of CSR, one broken in a state dict."""
    layer = _layer(CsrLinear, rng.randrange(99))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    crow, col, nnz = state["crow"], state["col"], layer.nnz
    row = rng.choice([r for r in range(N_OUT) if crow[r + 1] - crow[r] >= 2])
    first, cut = int(crow[row]), rng.randrange(nnz)

    def put(name: str, at: int, value: int) -> dict[str, Tensor]:
        changed = state[name].long()
        changed[at] = value
        return {name: changed if rng.random() < 0.5 or abs(value) > 2**31 - 1 else changed.int()}

    def swapped() -> dict[str, Tensor]:
        changed = col.clone()
        changed[[first, first + 1]] = changed[[first + 1, first]]
        return {"col": changed}

    wrong = rng.choice(("crow", "col"))
    junk = rng.choice(_WRONG_INDEX)
    faults: dict[str, Callable[[], dict[str, Any]]] = {
        "begins late": lambda: put("crow", 0, rng.choice((1, -1, 2**40))),
        "ends elsewhere": lambda: put("crow", -1, nnz + rng.choice((1, -1, 2**31, -(2**40), 2**62))),
        "falls": lambda: put("crow", row + 1, first - rng.choice((1, nnz, 2**33))) if row else put("crow", 1, -1),
        "wraps around": lambda: {"crow": torch.tensor([0, 2**63 - 1, -2, *[nnz] * (N_OUT - 2)])},
        "rows too few": lambda: {"crow": crow[:-1]},
        "rows too many": lambda: {"crow": torch.cat([crow, crow[-1:]])},
        "rows of two dimensions": lambda: {"crow": crow[:, None]},
        "negative column": lambda: put("col", cut, -rng.choice((1, N_IN, 2**31, 2**62))),
        "column beyond": lambda: put("col", cut, N_IN + rng.choice((0, 1, 2**31, 2**62))),
        "twice": lambda: put("col", first + 1, int(col[first])),
        "descends": swapped,
        "columns of two dimensions": lambda: {"col": col[None]},
        "columns too few": lambda: {"col": col[:-1]},
        "values too few": lambda: {"values_": state["values_"][:-1]},
        "values too many": lambda: {"values_": torch.cat([state["values_"], torch.ones(rng.choice((1, nnz)))])},
        "no values": lambda: {"values_": state["values_"][:0]},
        "dtype": lambda: {wrong: state[wrong].to(junk)},
        "nan": lambda: {wrong: torch.full(state[wrong].shape, float("nan"))},
        "between": lambda: {wrong: state[wrong].double() + 0.5},
        "missing": lambda: {rng.choice(("crow", "col", "values_")): None},
    }
    kind = rng.choice(list(faults))
    state |= faults[kind]()
    return kind, _loaded(layer, {name: value for name, value in state.items() if value is not None})


def _sites(rng: random.Random) -> Tensor:
    flat = torch.tensor(sorted(rng.sample(range(N_OUT * N_IN), rng.randrange(3, 40))))
    return torch.stack([flat // N_IN, flat % N_IN])


def _connections(rng: random.Random) -> tuple[str, _Attempt]:
    """A layer of given connections."""
    kind_of = rng.choice((CsrLinear, MaskedLinear))
    sites, at = _sites(rng), rng.randrange(3)
    whole: dict[str, Callable[[], Tensor]] = {
        "shape": lambda: rng.choice((sites.T.repeat(2, 1)[:5], sites[0], sites[None], sites[:1])),
        "dtype": lambda: sites.to(rng.choice((*_WRONG_INDEX, torch.int32, torch.uint8))),
        "nan": lambda: torch.full_like(sites, float("nan"), dtype=torch.float32),
        "negative": lambda: sites - N_OUT,
        "beyond": lambda: sites + rng.choice((N_OUT, 2**31, 2**62)),
        "twice": lambda: torch.cat([sites, sites[:, at : at + 1]], dim=1),
    }
    kind = rng.choice((*whole, "descends", "outside", "repeats"))
    if kind in whole:
        given = whole[kind]()
        return kind, lambda: kind_of(N_IN, N_OUT, connections=given)
    row, col = sites[0].clone(), sites[1].clone()
    if kind == "descends":
        row, col = row.flip(0), col.flip(0)
    elif kind == "outside":
        (row if rng.random() < 0.5 else col)[at] = rng.choice((-1, N_OUT, 2**31, 2**62))
    else:
        row[at + 1 if at + 1 < len(row) else 0], col[at + 1 if at + 1 < len(col) else 0] = row[at].clone(), col[at].clone()
    conn = Connections("layer", (N_OUT, N_IN), row, col, torch.ones(row.numel()))
    return kind, lambda: CsrLinear.from_connections(conn, None)


def _bad_masks(rng: random.Random) -> dict[str, Callable[[], Tensor]]:
    """Masks whose values or shape cannot be right."""
    good = torch.rand(N_OUT, N_IN, generator=torch.Generator().manual_seed(rng.randrange(99))) < 0.5
    real = good.float()

    def spoilt(value: float) -> Tensor:
        spoilt = real.to(rng.choice((torch.float32, torch.float64, torch.float16)))
        spoilt.view(-1)[rng.randrange(spoilt.numel())] = value
        return spoilt

    return {
        "shape": lambda: rng.choice((good.T, good.reshape(-1), good[:-1], good[None], good[:, :-1], torch.tensor(True), good[:0])),
        "dtype": lambda: good.to(rng.choice((torch.float32, torch.uint8, torch.int64, torch.float16, torch.complex64))),
        "nan": lambda: spoilt(float("nan")),
        "neither 0 nor 1": lambda: spoilt(rng.choice((0.5, 2.0, -1.0, float("inf"), 1e-7))),
    }


def _mask(rng: random.Random) -> tuple[str, _Attempt]:
    """A layer that is given its mask."""
    inner = nn.Linear(N_IN, N_OUT)
    ones = torch.ones(N_OUT, N_IN, dtype=torch.bool)
    faults = {
        **_bad_masks(rng),
        "device": lambda: ones.to("meta"),
        "aliases the weight": lambda: inner.weight.detach().view(torch.bool)[:, :N_IN],
        "is the weight": lambda: inner.weight.detach(),
        "not contiguous": lambda: rng.choice(
            (ones.T.contiguous().T, ones.repeat(1, 2)[:, ::2], torch.ones(1, dtype=torch.bool).expand(N_OUT, N_IN))
        ),
        "all zero": lambda: ~ones,
    }
    kind = rng.choice(list(faults))
    mask = faults[kind]()
    return kind, lambda: MaskedModule(inner, mask)


def _mask_state(rng: random.Random) -> tuple[str, _Attempt]:
    """A mask in a state dict."""
    layer, faults = _layer(MaskedLinear, rng.randrange(99)), _bad_masks(rng)
    kind = rng.choice(list(faults))
    return kind, _loaded(layer, {**layer.state_dict(), "inner.parametrizations.weight.0.mask": faults[kind]()})


def _keep(rng: random.Random) -> tuple[str, _Attempt]:
    """Who stays, as a method says it."""
    flat = torch.arange(0, 40, 2)
    good = torch.ones(20, dtype=torch.bool)
    faults: dict[str, Callable[[], Tensor]] = {
        "shape": lambda: rng.choice((good[:-1], torch.cat([good, good[:1]]), good[None], good[:0], torch.tensor(True))),
        "dtype": lambda: good.to(rng.choice((torch.float32, torch.uint8, torch.int64))),
        "nan": lambda: torch.full((20,), float("nan")),
        "places": lambda: flat,
    }
    kind = rng.choice(list(faults))
    return kind, lambda: remap_sites(flat, faults[kind](), torch.tensor([1, 3]), regrown_are_kept=rng.random() < 0.5)


def _packed(rng: random.Random) -> tuple[str, _Attempt]:
    """What a trial would keep as its mask."""
    flat, at = torch.tensor(sorted(rng.sample(range(N_OUT * N_IN), 20))), rng.randrange(19)
    shape: Iterable[int] = (N_OUT, N_IN)
    kind = rng.choice(("dtype", "nan", "dimensions", "negative", "beyond", "twice", "descends", "shape"))
    if kind == "dtype":
        flat = flat.to(rng.choice((*_WRONG_INDEX, torch.int32)))
    elif kind == "nan":
        flat = torch.full((20,), float("nan"))
    elif kind == "dimensions":
        flat = rng.choice((flat[None], flat[0]))
    elif kind == "negative":
        flat[0] = -rng.choice((1, 2**31, 2**62))
    elif kind == "beyond":
        flat[-1] = N_OUT * N_IN + rng.choice((0, 1, 2**62))
    elif kind == "twice":
        flat[at + 1] = flat[at]
    elif kind == "descends":
        flat = flat.flip(0)
    else:
        shape = rng.choice(((0, 9), (), (12, -9), (2**40, 2**40), (3, 3)))
    return kind, lambda: pack_masks({"a": (tuple(shape), flat)}, {"method": "set", "seed": 0, "step": 1})
