"""What a piece of code allocates at its peak: torch storages through a dispatch mode, everything else through tracemalloc."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of storages born inside the block and still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self._known.add(value.untyped_storage())  # came from outside, or is counted
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.layout == torch.strided and value.device.type != "meta":
                self._born(value.untyped_storage())
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            n_bytes = storage.nbytes()
            self.live += n_bytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._died, n_bytes)

    def _died(self, n_bytes: int) -> None:
        self.live -= n_bytes


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes that ``work()`` holds at its peak beyond what stood before; temporaries inside one torch kernel are not seen."""
    with _Ledger():
        torch.zeros(1).abs()  # what torch imports at its first use of a mode is nobody's allocation
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with _Ledger() as ledger:
            result = work()
        outside_torch = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
    del result
    total: int = ledger.peak + outside_torch
    return total
