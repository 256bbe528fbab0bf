"""The units of a network: which rows, norm entries and columns belong to one neuron or filter, read from its graph (torch.fx).

What stands for one unit: a row of the module that computes it, with its bias; an entry of every norm behind it; the columns of every module that
reads it, several where a flattened map is read. An addition couples the units of its operands (residuals; DepGraph, arXiv 2301.12900, section 3).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparsefleet.errors import UserError
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.nn.module import SparseModule

_ZERO_STAYS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Hardtanh)
_ZERO_STAYS += (nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Identity, nn.Dropout, nn.Dropout2d)  # type: ignore[assignment]
_ZERO_MOVES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, nn.AlphaDropout)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_EACH: set[Any] = {
    "relu",
    "relu_",
    "tanh",
    "contiguous",
    torch.relu,
    torch.tanh,
    F.relu,
    F.gelu,
    F.silu,
    F.leaky_relu,
    F.elu,
    F.dropout,
    F.tanh,
}
_MOVING: set[Any] = {"sigmoid", torch.sigmoid, F.sigmoid, F.softplus}
_POOLING: set[Any] = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_JOINING: set[Any] = {"add", "add_", "mul", operator.add, operator.iadd, operator.mul, torch.add, torch.mul}
_ADDING: set[Any] = {"add", "add_", operator.add, operator.iadd, torch.add}


@dataclass
class Group:
    """Units that stay or go together, numbered alike in all of these modules.

    Attributes:
        size: how many.
        writers: modules whose rows they are.
        readers: modules whose columns they are, and how many columns of the weight as a matrix one unit has there.
        norms: modules with an entry for each.
        fixed: why none of them may go: they are the network's input or output, or coupled with it.
        lost: where they cannot be followed; then none may go either, and a method that should remove some is refused.
        zero: whether a unit whose weights, bias and norm entries are zero gives zero wherever it is read.
    """

    size: int
    writers: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    fixed: str = ""
    lost: str = ""
    zero: bool = True


class _Value(NamedTuple):
    """What a node gives: units of a group along dimension 1 (``maps``) or the last one, perhaps several elements each after a flatten."""

    group: int
    maps: bool
    zero: bool = True


def plain(module: nn.Module) -> nn.Module:
    """The torch module that a masked one holds; any other is itself."""
    return module.inner if isinstance(module, MaskedModule) else module


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """``(n_out, n_in)`` of the weight of a Linear, a Conv2d or a sparse module, seen as a matrix."""
    if isinstance(module, SparseModule):
        return module.matrix_shape
    weight = module.get_parameter("weight")
    return weight.shape[0], weight[0].numel()


def units_of(network: nn.Module) -> list[Group]:
    """The groups of units of ``network``, in the order in which they are computed; the first is its input.

    Raises:
        UserError: its graph cannot be traced.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        raise UserError(
            "pattern neuron follows units through the network, whose graph cannot be traced",
            cause=f"{type(error).__name__}: {error}",
            fix="the pattern row or channel, which needs no graph",
        ) from error
    return _Walk(network, graph).groups()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (SparseModule, nn.LayerNorm)) or super().is_leaf_module(m, module_qualified_name)


class _Walk:
    """Follows every node's units; groups that an addition couples become one."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(network.named_modules())
        self.graph = graph
        self.found: list[Group] = []
        self.same: list[int] = []  # index of the group that this one has become part of, or its own
        self.values: dict[fx.Node, _Value | None] = {}
        self.calls: dict[str, int] = {}

    def groups(self) -> list[Group]:
        for node in self.graph.nodes:
            self.values[node] = self._value(node)
        return [group for i, group in enumerate(self.found) if self._root(i) == i]

    def _value(self, node: fx.Node) -> _Value | None:
        inputs = [value for value in (self.values.get(each) for each in node.all_input_nodes) if value is not None]
        if node.op == "placeholder":
            return self._new(0, maps=True, fixed="the network's input")
        if node.op == "output":
            for value in inputs:
                self._of(value).fixed = "the network's output"
            return None
        if node.op == "call_module":
            return self._of_module(str(node.target), inputs)
        if not inputs or node.op == "get_attr" or node.target in ("size", "dim") or node.target is getattr:
            return None
        return self._of_function(node, inputs)

    def _of_module(self, name: str, inputs: list[_Value]) -> _Value | None:
        module = self.modules[name]
        own = plain(module)
        self.calls[name] = self.calls.get(name, 0) + 1
        if len(inputs) != 1:
            return self._lose(inputs, f"{name} ({type(own).__name__})")
        value = inputs[0]
        if self.calls[name] > 1 and any(True for _ in module.parameters()):
            return self._lose(inputs, f"{name}, which is called more than once", name)
        if isinstance(own, nn.Linear) or (isinstance(module, SparseModule) and not isinstance(module, MaskedModule)):
            return self._computed(name, matrix_shape(module), value, maps=False)
        if isinstance(own, nn.Conv2d) and own.groups == 1:
            return self._computed(name, matrix_shape(module), value, maps=True)
        size = self._of(value).size
        if isinstance(own, (nn.BatchNorm1d, nn.BatchNorm2d)) and own.num_features == size and value.maps == isinstance(own, nn.BatchNorm2d):
            self._of(value).norms.append(name)
            return value._replace(zero=own.affine)
        if isinstance(own, nn.LayerNorm) and tuple(own.normalized_shape) == (size,) and not value.maps:
            self._of(value).norms.append(name)
            return value._replace(zero=True)
        if isinstance(own, _ZERO_STAYS) or (isinstance(own, nn.PReLU) and own.num_parameters == 1):
            return value
        if isinstance(own, _ZERO_MOVES):
            return value._replace(zero=False)
        if isinstance(own, _POOLS) and value.maps:
            return value
        if isinstance(own, nn.Flatten) and own.start_dim == 1 and own.end_dim == -1:
            return value._replace(maps=False)
        return self._lose(inputs, f"{name} ({type(own).__name__})")

    def _of_function(self, node: fx.Node, inputs: list[_Value]) -> _Value | None:
        target, value = node.target, inputs[0]
        if target in _JOINING:
            if len(inputs) == 2:
                return self._joined(*inputs)
            return value if target not in _ADDING else value._replace(zero=False)
        if len(inputs) == 1:
            if target in _EACH:
                return value
            if target in _MOVING:
                return value._replace(zero=False)
            if target in _POOLING and value.maps:
                return value
            if _flattens(node):
                return value._replace(maps=False)
            if _averages(node) and value.maps:
                return value._replace(maps=bool(node.kwargs.get("keepdim", False)))
        return self._lose(inputs, getattr(target, "__name__", str(target)))

    def _computed(self, name: str, shape: tuple[int, int], value: _Value, *, maps: bool) -> _Value:
        """A module of weight ``shape`` reads the units of ``value`` and computes new ones."""
        read, (n_out, n_in) = self._of(value), shape
        if read.size and (n_in % read.size or value.maps != maps):
            self._lose([value], f"{name}, which reads other dimensions")
        elif read.size:  # of the input, and behind what cannot be followed, the number is not known and no matter
            read.readers[name] = n_in // read.size
            read.zero = read.zero and value.zero
        return self._new(n_out, maps=maps, writers=[name])

    def _joined(self, a: _Value, b: _Value) -> _Value:
        if not (self._of(a).size and self._of(b).size):
            for value in (a, b):
                self._of(value).fixed = self._of(value).fixed or "added to what no layer computes"
            return a if self._of(a).size else b
        if a.maps != b.maps or self._of(a).size != self._of(b).size:
            return self._lose([a, b], "an addition of different shapes")
        first, second = sorted((self._root(a.group), self._root(b.group)))
        self.same[second] = first
        if first != second:
            self._join_into(self.found[first], self.found[second])
        return _Value(first, a.maps, a.zero and b.zero)

    @staticmethod
    def _join_into(one: Group, other: Group) -> None:
        if one is other:
            return
        one.writers += [name for name in other.writers if name not in one.writers]
        one.norms += [name for name in other.norms if name not in one.norms]
        one.readers |= other.readers
        one.fixed, one.lost, one.zero = one.fixed or other.fixed, one.lost or other.lost, one.zero and other.zero

    def _lose(self, inputs: list[_Value], where: str, again: str = "") -> _Value:
        """Units that cannot be followed any more, with those of a module that is met again; what comes out are other ones, of unknown number."""
        for value in inputs:
            self._of(value).lost = self._of(value).lost or where
        for group in self.found:
            if again in (*group.writers, *group.readers, *group.norms):
                group.lost = group.lost or where
        return self._new(0, maps=bool(inputs and inputs[0].maps), lost=where)

    def _new(self, size: int, *, maps: bool, writers: list[str] | None = None, fixed: str = "", lost: str = "") -> _Value:
        self.found.append(Group(size, writers or [], fixed=fixed, lost=lost))
        self.same.append(len(self.found) - 1)
        return _Value(len(self.found) - 1, maps)

    def _root(self, i: int) -> int:
        while self.same[i] != i:
            i = self.same[i]
        return i

    def _of(self, value: _Value) -> Group:
        return self.found[self._root(value.group)]


def _flattens(node: fx.Node) -> bool:
    """``x.flatten(1)``, ``torch.flatten(x, 1)``, ``x.view(n, -1)`` and ``x.reshape(n, -1)``."""
    rest: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if node.target in ("view", "reshape", torch.reshape):
        shape = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        return len(shape) == 2 and bool(shape[1] == -1)
    return node.target in ("flatten", torch.flatten) and rest in ([1], [1, -1])


def _averages(node: fx.Node) -> bool:
    """The mean over both sides of a map."""
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    is_mean = node.target in ("mean", torch.mean) and isinstance(dims, (tuple, list))
    return is_mean and sorted(int(dim) % 4 for dim in dims) == [2, 3]
