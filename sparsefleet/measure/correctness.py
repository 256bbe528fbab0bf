"""Correctness before any clock: each sparse layer against a float64 reference made from its connections alone.

Three looks at every layer. *In place*: what it really received and returned during a forward pass of the whole network; judged layer by layer,
because a float64 copy of the whole network would choose other winners and other signs wherever two values nearly tie. *Alone*: random, ones
and one-hot inputs of the same shape, forward and, for training claims, the gradients by input, weights and bias. *By what it does*: nothing may flow where there is no connection, and a layer that calls itself
sparse may not compute with a dense matrix of its size. The reference costs
O(nnz * batch) and holds out x in only for small layers; beyond ``MAX_PRODUCTS`` it covers sampled outputs, inputs and connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsefleet.errors import SparsefleetError
from sparsefleet.nn.module import SparseModule
from sparsefleet.rng import Rng

FLOOR = {"fp64": 1e-12, "fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 2e-2}
MAX_PRODUCTS = 1 << 25
"""Products of a reference pass; about a second of one core."""
MAX_DENSE_SITES = 1 << 24
"""Up to here the error of a dense layer in the same dtype is measured too, and twice that is allowed."""
MAX_WHOLE_SITES = 1 << 22
"""Up to here (32 MiB) the reference multiplies a whole float64 matrix, which is faster; above it goes from connection to connection."""
_CHUNK = 1 << 21
_PROBES = 32
_ROWS = 2
DENSE_EXECUTIONS = ("dense", "masked_dense")
"""What a layer that computes with a dense matrix has to call itself."""


@dataclass
class Correctness:
    """The worst that was found; errors are max|difference| / max|reference|.

    Attributes:
        margin: the largest error over its tolerance; above 1 is incorrect.
        unchecked: sparse layers for which there is no reference (not linear).
        unfit: layers that are not what they say, in words; such a network is refused whatever its errors are.
        sampled: a layer was too large to be compared everywhere.
    """

    max_rel_err: float = 0.0
    dense_same_dtype_err: float = 0.0
    tol: float = 0.0
    margin: float = 0.0
    comparisons: int = 0
    layers: int = 0
    backward: bool = False
    sampled: bool = False
    worst: str = ""
    unchecked: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if every comparison is within its tolerance, no layer went unchecked, and all are what they say."""
        return self.margin <= 1 and not self.unchecked and not self.unfit

    @property
    def reason(self) -> str:
        """Why it is not correct, or an empty string."""
        told = list(self.unfit)
        if self.unchecked:
            told.append(f"no reference for {', '.join(self.unchecked)}")
        if self.margin > 1:
            told.append(f"{self.worst}: relative error {self.max_rel_err:.2e} exceeds {self.tol:.1e}")
        return "; ".join(told)

    def to_json(self) -> dict[str, float]:
        """Finite numbers for the record."""
        names = ("max_rel_err", "dense_same_dtype_err", "tol", "comparisons", "layers", "backward", "sampled")
        return {"ok": float(self.ok)} | {name: min(float(getattr(self, name)), 1e308) for name in names}

    def add(self, what: str, err: float, dense_err: float, floor: float) -> None:
        """Takes one comparison in."""
        tol = max(2 * dense_err, floor)
        self.comparisons += 1
        self.dense_same_dtype_err = max(self.dense_same_dtype_err, dense_err)
        if self.comparisons == 1 or err / tol > self.margin:
            self.margin, self.max_rel_err, self.tol, self.worst = err / tol, err, tol, what


def check_network(network: nn.Module, inputs: Sequence[Tensor], *, precision: str, gradients: bool, key: str) -> Correctness:
    """Compares every sparse layer of ``network`` with its float64 reference.

    Args:
        inputs: batches for the whole network, as they will be timed.
        precision: of the trial: ``fp32``, ``tf32``, ``bf16`` or ``fp64``; decides the tolerance.
        gradients: check backward as well.
        key: seeds the synthetic inputs and the samples of large layers.
    """
    floor, found = FLOOR[precision], Correctness(backward=gradients)
    modules = sparse_modules(network)
    shapes: dict[str, Tensor] = {}
    for batch in inputs:
        shapes = {**check_layers(network, batch, found, floor, key), **shapes}
    for name, module in modules.items():
        if name in shapes:
            found.layers += 1
            _check_alone(name, module, shapes[name], found, floor, key)
            dense = computes_densely(name, module, shapes[name], backward=gradients) if found.margin <= 1 else ""
            found.unfit += [text for text in (acts_outside(name, module, key), dense) if text]
        else:
            found.unchecked.append(name)
    return found


def sparse_modules(network: nn.Module) -> dict[str, SparseModule]:
    """The modules of ``network`` that hold connections, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SparseModule)}


def check_layers(network: nn.Module, x: Tensor, found: Correctness, floor: float, key: str) -> dict[str, Tensor]:
    """Compares every linear sparse layer with its reference while the whole network computes ``x``.

    Returns:
        What each of them received, by name.
    """
    modules = sparse_modules(network)
    shapes: dict[str, Tensor] = {}
    with _watched(modules) as calls, torch.inference_mode():
        network(x)
    for name, received, y in calls:
        if _is_linear(modules[name], received):
            reference = _Reference(modules[name], received, Rng(key, "in place", name))
            found.add(f"{name} in the network's forward pass", *reference.forward_errors(y), floor)
            found.sampled |= reference.sampled
            shapes.setdefault(name, received)
    return shapes


def _is_linear(module: SparseModule, x: Tensor) -> bool:
    return module.kernel == 1 and x.dim() >= 2 and x.shape[-1] == module.matrix_shape[1]


@contextmanager
def _watched(modules: dict[str, SparseModule]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    calls: list[tuple[str, Tensor, Tensor]] = []

    def hook_of(name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((name, args[0].clone(), output.clone()))

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]  # type: ignore[arg-type]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_alone(name: str, module: SparseModule, like: Tensor, found: Correctness, floor: float, key: str) -> None:
    rng = Rng(key, "alone", name)
    for what, x in _synthetic(like, rng).items():
        reference = _Reference(module, x, rng)
        found.sampled |= reference.sampled
        if not found.backward:
            with torch.inference_mode():
                y = module(x)
            found.add(f"{name} of {what} inputs", *reference.forward_errors(y), floor)
            continue
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        grad = rng.normal(y.numel(), y.device).view(y.shape).to(y.dtype)
        found.add(f"{name} of {what} inputs", *reference.forward_errors(y.detach()), floor)
        for part, errors in reference.gradient_errors(grad, *_gradients(module, leaf, y, grad)):
            found.add(f"gradient by {part} of {name} for {what} inputs", *errors, floor)


def acts_outside(name: str, module: SparseModule, key: str) -> str:
    """Says at how many probed sites without a connection a linear layer acts all the same, or an empty string.

    One-hot inputs of up to ``_PROBES`` input units; every output that no connection reaches must be the bias, to the last bit but one.
    A weight that is stored densely must be exactly zero at every absent site.
    """
    n_out, n_in = module.matrix_shape
    flat, weight = module.flat_sites(), module.weight_parameter
    n_probes = min(_PROBES, n_in, max(1, _CHUNK // n_out))
    units = Rng(key, "outside", name).distinct(n_probes, n_in, weight.device)
    x = torch.zeros(units.numel(), n_in, dtype=weight.dtype, device=weight.device)
    x[torch.arange(units.numel(), device=units.device), units] = 1
    was_training = module.training
    module.eval()
    with torch.no_grad():
        y = module(x)
    module.train(was_training)
    if y.shape != (n_probes, n_out):
        return f"{name} returns shape {tuple(y.shape)} for {n_probes} inputs, {(n_probes, n_out)} is right"
    bias = getattr(module, "bias", None)
    rest = torch.zeros(n_out, dtype=y.dtype, device=y.device) if bias is None else bias.detach().to(y.dtype)
    acts = (y - rest).abs() > 2 * torch.finfo(y.dtype).eps * rest.abs()
    place = torch.full((n_in,), -1, dtype=torch.int64, device=flat.device)
    place[units] = torch.arange(units.numel(), device=flat.device)
    probe = place[flat % n_in]
    acts[probe[probe >= 0], (flat // n_in)[probe >= 0]] = False
    n_acting, n_probed = int(acts.sum()), acts.numel()
    if n_acting:
        return f"{name} acts at {n_acting:,} of {n_probed:,} probed sites where it has no connection"
    if weight.numel() == n_out * n_in and flat.numel() < weight.numel() and not module.keeps_absent:
        stored = weight.detach().reshape(-1).clone()
        stored[flat] = 0
        n_stored = int((stored != 0).sum())
        if n_stored:
            return f"{name} stores {n_stored:,} weights that are not zero where it has no connection"
    return ""


def computes_densely(name: str, module: SparseModule, like: Tensor, *, backward: bool) -> str:
    """Says that a layer which is not declared dense computes with a dense matrix of its size, or an empty string.

    Every operation of a forward and, if asked, a backward pass on two rows is looked at. Layers that hold nearly all their sites, and those that are
    hardly larger than their activations, cannot be told apart that way and are not judged.
    """
    n_out, n_in = module.matrix_shape
    sites = n_out * n_in
    if module.execution in DENSE_EXECUTIONS or module.nnz > 0.9 * sites or sites <= 8 * _ROWS * (n_out + n_in):
        return ""
    x = torch.ones(_ROWS, n_in, dtype=like.dtype, device=like.device, requires_grad=backward)
    before, seen = module.weight_parameter.grad, _DenseSeen(sites)
    try:
        with seen, torch.set_grad_enabled(backward):
            y = module(x)
            if backward:
                y.sum().backward()
    finally:
        module.weight_parameter.grad = before
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.grad = None
    return f"{name} is declared {module.execution} and computes with a dense {n_out} x {n_in} matrix ({seen.found})" if seen.found else ""


class _DenseSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation that reads or gives a strided floating-point tensor of ``sites`` elements or more."""

    def __init__(self, sites: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sites, self.found = sites, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
            if is_dense and tensor.numel() >= self._sites and not self.found:
                self.found = str(func)
        return result


def _synthetic(like: Tensor, rng: Rng) -> dict[str, Tensor]:
    """Random, ones and one-hot inputs of the shape and dtype of ``like``."""
    one_hot = torch.zeros_like(like).reshape(-1, like.shape[-1])
    rows = torch.arange(one_hot.shape[0], device=like.device)
    one_hot[rows, rng.integers(rows.numel(), like.shape[-1], like.device)] = 1
    random = rng.normal(like.numel(), like.device).to(like.dtype).view(like.shape)
    return {"random": random, "ones": torch.ones_like(like), "one-hot": one_hot.view(like.shape)}


def _gradients(module: SparseModule, x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients by the input, by the connections in ascending order of site, and by the bias; the Parameters' own stay untouched."""
    weight, bias = module.weight_parameter, getattr(module, "bias", None)
    before = weight.grad
    by_x, by_weight, *by_bias = torch.autograd.grad(y, [x, weight] if bias is None else [x, weight, bias], grad)
    try:
        weight.grad = by_weight
        values = module.grad_values()
    finally:
        weight.grad = before
    if values is None:
        raise SparsefleetError(f"layer {module.layer_name!r} gives no gradient of its weights")
    return by_x, values, by_bias[0] if by_bias else None


class _Reference:
    """What ``module`` must return for ``x``, in float64, from its connections.

    Args:
        x: ``(..., n_in)``.
    """

    def __init__(self, module: SparseModule, x: Tensor, rng: Rng) -> None:
        self.n_out, self.n_in = module.matrix_shape
        self.x = x.detach().reshape(-1, self.n_in)
        self.xt = self.x.to(torch.float64).t().contiguous()  # (n_in, batch)
        flat = module.flat_sites()
        self.row, self.col = flat // self.n_in, flat % self.n_in
        stored = module.multiplied()
        self.weight = stored.to(torch.float64)
        bias = getattr(module, "bias", None)
        self.bias = None if bias is None else bias.detach().to(torch.float64)
        self.rng = rng
        products = flat.numel() * self.x.shape[0]
        self.whole: Tensor | None = None
        if self.n_out * self.n_in <= MAX_WHOLE_SITES:
            self.whole = self.weight.new_zeros(self.n_out * self.n_in).index_put_((flat,), self.weight).view(self.n_out, self.n_in)
        self.sampled = self.whole is None and products > MAX_PRODUCTS
        self.share = min(1.0, MAX_PRODUCTS / max(1, products))
        self.dense: Tensor | None = None
        if self.n_out * self.n_in <= MAX_DENSE_SITES:
            self.dense = stored.new_zeros(self.n_out * self.n_in).index_put_((flat,), stored).view(self.n_out, self.n_in)

    def forward_errors(self, y: Tensor) -> tuple[float, float]:
        """Error of ``y``, and of a dense layer of the same dtype (0 where that is too large to ask)."""
        yt = y.reshape(-1, self.n_out).t()
        units = self._some(self.n_out)
        reference = self._sum(self.row, self.col, self.xt, units) if self.whole is None else self.whole @ self.xt
        if self.bias is not None:
            reference += self.bias[units, None]
        dense_err = 0.0
        if self.dense is not None:
            bias = None if self.bias is None else self.bias.to(self.dense.dtype)
            dense = nn.functional.linear(self.x.to(self.dense.dtype), self.dense, bias).to(y.dtype)
            dense_err = relative_error(dense.t()[units], reference)
        return relative_error(yt[units], reference), dense_err

    def gradient_errors(
        self, grad: Tensor, by_x: Tensor, by_weight: Tensor, by_bias: Tensor | None
    ) -> Iterator[tuple[str, tuple[float, float]]]:
        """Errors of the gradients for an output gradient ``grad`` ``(..., n_out)``, each with that of a dense layer."""
        flat_grad = grad.reshape(-1, self.n_out)
        gt = flat_grad.to(torch.float64).t().contiguous()  # (n_out, batch)
        units = self._some(self.n_in)
        reference = self._sum(self.col, self.row, gt, units) if self.whole is None else self.whole.t() @ gt
        dense = None if self.dense is None else (flat_grad.to(self.dense.dtype) @ self.dense).t()[units]
        yield "input", (relative_error(by_x.reshape(-1, self.n_in).t()[units], reference), relative_error(dense, reference))
        some = self._some(self.row.numel())
        row, col = self.row[some], self.col[some]
        reference = self._products(gt, row, col) if self.whole is None else (gt @ self.xt.t())[row, col]
        dense = None if self.dense is None else (flat_grad.to(self.dense.dtype).t() @ self.x.to(self.dense.dtype))[row, col]
        yield "weights", (relative_error(by_weight[some], reference), relative_error(dense, reference))
        if by_bias is not None:
            dense = flat_grad.to(by_bias.dtype).sum(0)
            yield "bias", (relative_error(by_bias, gt.sum(1)), relative_error(dense, gt.sum(1)))

    def _some(self, n: int) -> Tensor:
        """``(k,)`` positions to compare: all of them unless the layer is too large."""
        if not self.sampled:
            return torch.arange(n, device=self.x.device)
        return self.rng.distinct(min(n, max(64, int(self.share * n))), n, self.x.device)

    def _step(self) -> int:
        return max(1, _CHUNK // max(1, self.x.shape[0]))

    def _products(self, gt: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """``(k,)``: per connection, output gradient times input, summed over the batch."""
        out, step = gt.new_zeros(row.numel()), self._step()
        for i in range(0, row.numel(), step):
            out[i : i + step] = (gt[row[i : i + step]] * self.xt[col[i : i + step]]).sum(1)
        return out

    def _sum(self, to: Tensor, source: Tensor, values: Tensor, units: Tensor) -> Tensor:
        """``(len(units), batch)``: per unit, the sum of weight times ``values[source]`` over the connections that end there."""
        place = torch.full((int(max(self.n_out, self.n_in)),), -1, dtype=torch.int64, device=units.device)
        place[units] = torch.arange(units.numel(), device=units.device)
        wanted = torch.nonzero(place[to] >= 0).flatten()
        out = values.new_zeros(units.numel(), values.shape[1])
        for i in range(0, wanted.numel(), self._step()):
            part = wanted[i : i + self._step()]
            out.index_add_(0, place[to[part]], self.weight[part, None] * values[source[part]])
        return out


def relative_error(got: Tensor | None, reference: Tensor) -> float:
    """max|got - reference| / max|reference|; infinite if anything is not finite; 0 for nothing to compare."""
    if got is None or reference.numel() == 0:
        return 0.0
    difference = (got.to(torch.float64) - reference).abs().max()
    if not bool(torch.isfinite(difference)):
        return float("inf")
    scale = float(reference.abs().max())
    return float(difference) / scale if scale > 0 else (0.0 if float(difference) == 0 else float("inf"))
