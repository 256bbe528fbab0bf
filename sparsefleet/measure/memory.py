"""Peak memory of one call, and what moving masked-dense weights into sparse storage costs.

CPU: the kernel's high-water mark (``VmHWM``) is reset by writing 5 to ``/proc/self/clear_refs``; the peak is its rise above what was resident
at that moment. Meant for a fresh process: memory that an allocator kept from earlier calls is resident already and would hide a rise.
GPU: the allocator's own peaks and the bytes that the driver counts for this process. Where neither can be read, nothing is made up.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.measure import machine, nvidia
from sparsefleet.plugin import Layer
from sparsefleet.registry import Registry
from sparsefleet.trial.build import Network
from sparsefleet.trial.spec import TrialSpec

T = TypeVar("T")
_SELF = Path("/proc/self")
_MASKED_SHARE = 0.25
"""Share of the free memory that masked-dense weights may take, so that conversion's own transients fit beside them."""
_BYTES_PER_SITE = 9
"""A double and its mask at most."""
_REPEAT_S = 1.0


@dataclass(frozen=True)
class Peak:
    """The most memory that a call held at once, above what was held before it.

    Attributes:
        bytes: None if it could not be measured.
        kind: ``VmHWM`` or ``cuda``; of what ``bytes`` is.
        reserved_bytes: the CUDA allocator's peak of reserved memory, in all.
        process_bytes: what the driver counts for this process after the call, CUDA's context included.
        why_not: why ``bytes`` is None.
    """

    bytes: int | None
    kind: str
    reserved_bytes: int | None = None
    process_bytes: int | None = None
    why_not: str = ""


def peak_of(call: Callable[[], T], device: str) -> tuple[T, Peak]:
    """What ``call`` returns and the peak while it ran; what the result holds is part of the peak."""
    return _peak_of_cuda(call, device) if device.startswith("cuda") else _peak_of_process(call)


def _peak_of_process(call: Callable[[], T]) -> tuple[T, Peak]:
    gc.collect()
    _give_back()
    why_not = _reset_high_water()
    before = _status("VmRSS")
    result = call()
    after = _status("VmHWM")
    if not why_not and (before is None or after is None):
        why_not = f"{_SELF}/status shows no VmRSS and VmHWM"
    if why_not or before is None or after is None:
        return result, Peak(None, "VmHWM", why_not=why_not)
    return result, Peak(max(0, after - before), "VmHWM")


def _give_back() -> None:
    """Returns freed heap to the kernel, where the C library can: else a call could reuse it and seem to need nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_high_water() -> str:
    """Why the high-water mark could not be reset, or an empty string."""
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError as error:
        return f"{_SELF}/clear_refs cannot be written: {error.strerror}"
    return ""


def _status(name: str) -> int | None:
    for line in machine.lines(_SELF / "status"):
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def _peak_of_cuda(call: Callable[[], T], device: str) -> tuple[T, Peak]:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, Peak(
        bytes=torch.cuda.max_memory_allocated(device) - before,
        kind="cuda",
        reserved_bytes=torch.cuda.max_memory_reserved(device),
        process_bytes=_process_bytes(device),
    )


def _process_bytes(device: str) -> int | None:
    """None where the driver does not tell, as in most containers."""
    uuid = f"GPU-{str(getattr(torch.cuda.get_device_properties(device), 'uuid', '')).removeprefix('GPU-')}"
    found = [n for gpu, pid, n in nvidia.compute_processes() or () if gpu == uuid and pid == os.getpid()]
    return found[0] if found else None


def conversion(network: Network, spec: TrialSpec, registry: Registry, device: str) -> tuple[float, Peak]:
    """Seconds and peak memory of turning masked-dense weights into the storage of ``spec``: what a pruned network pays once.

    Dense weights and masks of the network's connections are made first and do not count. Where they would not fit, the storage is built
    from the connections alone. Seconds are the median of up to three conversions, the peak is that of the first.

    Args:
        network: of ``spec``, in any storage; stays as it is.
    """
    layer: Layer = registry.build("layer", spec.layer)
    if not network.sparse or layer.stores_dense:
        return 0.0, Peak(None, "cuda" if device.startswith("cuda") else "VmHWM", why_not=f"{layer.name} stores no connections")
    sources = _sources(network, device)

    def convert_all() -> list[nn.Module]:
        return [source.build(layer) for source in sources]

    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and sum(seconds) < _REPEAT_S):
        start = time.perf_counter()
        if not seconds:
            peak = peak_of(convert_all, device)[1]
        else:
            convert_all()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds), peak


@dataclass(frozen=True)
class _Source:
    """Where a layer's connections come from: a dense weight and its mask, or the connections themselves.

    Attributes:
        stored: ``(weight, mask)``, both ``(n_out, n_in)``, or ``(flat, values)``, both ``(nnz,)``.
    """

    name: str
    shape: tuple[int, int]
    bias: Tensor | None
    is_dense: bool
    stored: tuple[Tensor, Tensor]

    def build(self, layer: Layer) -> nn.Module:
        """The layer in its storage."""
        (n_out, n_in), (first, second) = self.shape, self.stored
        flat = torch.nonzero(second.view(-1)).flatten() if self.is_dense else first  # (nnz,) int64
        weight = first.view(-1)[flat] if self.is_dense else second
        with torch.device("meta"):
            template = nn.Linear(n_in, n_out, bias=self.bias is not None)
        return layer.build(template, Connections(self.name, self.shape, flat // n_in, flat % n_in, weight), self.bias)


def _sources(network: Network, device: str) -> list[_Source]:
    n_sites = sum(module.matrix_shape[0] * module.matrix_shape[1] for module in network.sparse.values())
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else machine.memory_free() or 0
    is_dense = n_sites * _BYTES_PER_SITE <= _MASKED_SHARE * free
    found = []
    for name, module in network.sparse.items():
        flat, values = module.flat_sites(), module.values()
        stored = flat, values
        if is_dense:
            weight = torch.zeros(module.matrix_shape, dtype=values.dtype, device=values.device)
            mask = torch.zeros(module.matrix_shape, dtype=torch.bool, device=values.device)
            weight.view(-1)[flat], mask.view(-1)[flat] = values, True
            stored = weight, mask
        bias: Tensor | None = getattr(module, "bias", None)
        found.append(_Source(name, module.matrix_shape, None if bias is None else bias.detach(), is_dense, stored))
    return found
