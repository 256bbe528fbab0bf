"""Connections from a small matrix, and slow float64 references written out with Python lists."""

import math

import torch

from sparsefleet import Connections, Rng


def connections(weight, mask=None, *, grad=None, rng=None, **more):
    """Connections of a ``(n_out, n_in)`` weight at the sites of ``mask`` (default: the non-zero weights).

    ``grad`` is the dense gradient; ``best_absent`` then ranks by it.
    """
    weight = torch.as_tensor(weight, dtype=torch.float64)
    mask = weight != 0 if mask is None else torch.as_tensor(mask, dtype=torch.bool)
    row, col = torch.nonzero(mask, as_tuple=True)
    conn = Connections("layer", tuple(weight.shape), row, col, weight[mask].clone(), rng=rng or Rng("by-hand"), **more)
    if grad is not None:
        dense = torch.as_tensor(grad, dtype=torch.float64)
        conn.grad = dense[mask].clone()
        conn.best_absent_by_gradient = lambda present, k: best_absent_slowly(dense, set(present.tolist()), k)
    return conn


def drawn(seed, nnz, tied):
    """``(6, 8)`` weight and gradient with ``nnz`` live sites of 48: both, and the flat sites; ``tied``: many values are equal."""
    draw = Rng(seed)
    live = draw.distinct(nnz, 48).tolist()
    weight, grad = draw.normal(48).view(6, 8), draw.normal(48).view(6, 8)
    return (weight.sign(), grad.round(), live) if tied else (weight, grad, live)


def mask_of(live):
    """``(6, 8)`` bool, true at the flat sites ``live``."""
    mask = torch.zeros(48, dtype=torch.bool)
    mask[live] = True
    return mask.view(6, 8)


def best_absent_slowly(dense, present, k):
    """``(2, k)`` absent sites with the largest magnitude; of equal ones the earlier."""
    n_in = dense.shape[1]
    values = dense.reshape(-1).tolist()
    absent = [site for site in range(len(values)) if site not in present]
    best = sorted(sorted(absent, key=lambda site: (-abs(values[site]), site))[:k])
    return torch.tensor([[site // n_in for site in best], [site % n_in for site in best]], dtype=torch.int64).view(2, len(best))


def cosine_slowly(drop_fraction, t, t_end):
    """f_t of arXiv 1911.11134, Eq. 1."""
    return drop_fraction / 2 * (1 + math.cos(math.pi * t / t_end))


def sites_of(conn, keep=None):
    """Flat sites as a set."""
    return set((conn.flat if keep is None else conn.flat[keep]).tolist())


def flat_of(sites, n_in):
    """Flat sites of ``(2, k)``."""
    return set((sites[0] * n_in + sites[1]).tolist())
