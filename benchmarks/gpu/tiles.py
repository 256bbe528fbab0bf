"""Whether other tiles than those that the kernels choose by shape would be faster on this GPU. Told, without a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.figures import Figure, Run
from benchmarks.gpu.device import DEVICE, Calls, require
from benchmarks.ops.cases import CASES
from benchmarks.ops.problem import connections
from sparsefleet.measure.clock import clock_for
from sparsefleet.ops.pattern import pattern_of
from sparsefleet.ops.triton_linear import Tile, tile_for, triton_backward, triton_forward

_LAYERS = ("b64", "c64")
_WARPS, _UNROLLS = (1, 2, 4), (2, 4, 8, 16)


def figures(run: Run) -> list[Figure]:
    """By case, kernel and type: how many times faster the fastest tile is than the chosen one."""
    require()
    made, clock = [], clock_for(DEVICE)
    for name in _LAYERS:
        case = CASES[name]
        shape, batch = case.shapes[0], case.batch
        conn = connections(shape)
        pattern = pattern_of(conn.row.to(DEVICE), conn.col.to(DEVICE), conn.shape, fan_in=shape.fan_in)
        values = conn.weight.to(DEVICE)
        for dtype in (torch.float32, torch.bfloat16):
            x, dy = (torch.randn(n, batch, device=DEVICE).to(dtype) for n in (shape.n_in, shape.n_out))

            def forward(tile: Tile, x: Tensor = x) -> object:
                return triton_forward(x, values, pattern, tile=tile)  # noqa: B023

            def backward(tile: Tile, x: Tensor = x, dy: Tensor = dy) -> object:
                return triton_backward(dy, x, values, pattern, True, True, tile=tile)  # noqa: B023

            for what, call, chosen in (
                ("forward", forward, tile_for(x, shape.fan_in, warps=4)),
                ("backward", backward, tile_for(dy, shape.fan_in, warps=1)),
            ):
                times = {tile: _ms(call, tile, clock) for tile in others(chosen)}
                best = min(times, key=lambda tile: times[tile])
                for tile, ms in sorted(times.items(), key=lambda item: item[1]):
                    run.say(f"{name} {what} {dtype}: {ms:.4g} ms  {tile}{'  chosen' if tile == chosen else ''}")
                title = f"chosen tile over the fastest: {name}, {what}, {str(dtype).removeprefix('torch.')}"
                made.append(Figure(title, "times", times[chosen] / times[best], note=f"{times[best]:.4g} ms with {best}"))
    return made


def others(chosen: Tile) -> Iterator[Tile]:
    """The chosen tile, and every other number of warps and of connections at once, with as many rows as fill the warps."""
    yield chosen
    lanes = chosen.batch // chosen.vector
    for warps in _WARPS:
        for unroll in _UNROLLS:
            tile = replace(chosen, warps=warps, unroll=unroll, rows=max(1, warps * 32 // lanes))
            if tile != chosen:
                yield tile


def _ms(call: Callable[[Tile], object], tile: Tile, clock: object) -> float:
    return Calls(lambda _: call(tile), 4, DEVICE).ms(clock)  # type: ignore[arg-type]
