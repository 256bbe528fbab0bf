"""What a piece of code allocates at its peak: torch storages through a dispatch mode, everything else through tracemalloc."""

from __future__ import annotations

import resource
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of storages born inside the block and still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and torch would import its compiler for it, more than a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in _tensors((args, kwargs)):
            if value.layout == torch.strided:
                self._known.add(value.untyped_storage())  # came from outside, or is counted
        result = func(*args, **(kwargs or {}))
        for value in _tensors(result):
            if value.layout == torch.strided and value.device.type != "meta":
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


def _tensors(held: Any) -> Iterator[Tensor]:
    """Every tensor in the arguments or the result of an operator."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, (tuple, list)):
        for part in held:
            yield from _tensors(part)
    elif isinstance(held, dict):
        yield from _tensors(list(held.values()))


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes that ``work()`` holds at its peak beyond what stood before; temporaries inside one torch kernel are not seen."""
    with Ledger():
        torch.zeros(1).abs()  # what torch imports at its first use of a mode is nobody's allocation
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with Ledger() as ledger:
            result = work()
        outside_torch = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
    del result
    total: int = ledger.peak + outside_torch
    return total


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """Lets this process map that much more memory inside the block, so that what asks for gigabytes fails at once; Linux only, else no limit."""
    mapped = Path("/proc/self/statm")
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    if not mapped.exists():
        yield
        return
    limit = int(mapped.read_text().split()[0]) * resource.getpagesize() + n_bytes
    known = [value for value in (limit, before, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
