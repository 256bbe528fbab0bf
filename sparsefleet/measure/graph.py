"""CUDA graphs: calls that are recorded once and replayed without the host's time between their kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def recorded(calls: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], None] | None:
    """Replays all ``calls`` in order, over the memory that they used when they were recorded; None if one of them cannot be recorded.

    Each is called once before, which compiles kernels and fills caches. What it returns is given up.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    except RuntimeError:  # it waits for the device, or uses another stream
        torch.cuda.synchronize(device)
        return None
    return graph.replay
