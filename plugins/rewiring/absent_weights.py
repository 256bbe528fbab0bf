"""First weights of absent connections, for methods that train a dense weight behind a mask."""

import torch

from sparsefleet import Connections


def draw_absent(conn: Connections, lr: float) -> None:
    """Gives every absent site the weight that it would have had in the dense layer, after the first step of plain SGD.

    The first weights of live connections follow from that step, ``w + lr * grad``, and tell the scale of the draws.
    """
    first = conn.weight + lr * conn.grad
    draws = conn.initial_draw(conn.flat).abs().sum()
    absent = torch.ones(conn.n_sites, dtype=torch.bool, device=conn.weight.device)
    absent[conn.flat] = False
    site = torch.nonzero(absent).flatten()
    scale = first.double().abs().sum() / draws if float(draws) else torch.zeros_like(draws)
    conn.dense.weight.view(-1)[site] = (conn.initial_draw(site) * scale).to(conn.weight.dtype)
