"""LSTM and GRU whose weights are ordinary Linear modules, one per gate, so that whatever works on a Linear works on a gate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import PackedSequence

from sparsefleet.nn.bounds import linear_within
from sparsefleet.nn.masked import MaskedModule

States = tuple[Tensor, ...]
"""The hidden state and, for an LSTM, the cell state."""


class _Gates(nn.Module):
    """Linear modules that read the same, one per gate, called by name."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(..., n_in)`` to ``(..., hidden)`` of every gate."""
        return [gate(x) for gate in self.children()]


class _Direction(nn.Module):
    """The gates of one layer in one direction of time: ``from_input`` and ``from_hidden``, and an LSTM's ``projection``."""

    from_input: _Gates
    from_hidden: _Gates
    projection: nn.Module | None


class _Recurrent(nn.Module, ABC):
    """What LSTM and GRU have in common.

    Gates of layer k are ``layer{k}.from_input.{gate}`` and ``layer{k}.from_hidden.{gate}``, and under ``layer{k}_reverse`` those of the other
    direction; each has its bias, as torch's have two. Where all of them are dense-stored torch's own fused pass computes with their weights
    put together, else a loop over time calls them one by one; so it does where a gate has hooks. ``torch.compile`` breaks the graph at the
    fused pass, as at torch's module.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as for torch's module.
    """

    gates: ClassVar[tuple[str, ...]] = ()
    """In the order of the rows of torch's weights."""
    torch_kind: ClassVar[Any]

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__()
        device, dtype = options.pop("device", None), options.pop("dtype", None)
        like = self.torch_kind(input_size, hidden_size, *args, **options, device="meta")  # torch checks the arguments
        self._make(like, device, dtype)

    @classmethod
    def from_torch(cls, module: nn.RNNBase) -> _Recurrent:
        """The same with the weights of torch's ``module``, in the same mode; on the meta device where that is."""
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        first = module.get_parameter("weight_ih_l0")
        own._make(module, first.device, first.dtype)
        with torch.no_grad():
            for parameter, name, rows in own.sources():
                old = module.get_parameter(name)
                parameter.requires_grad_(old.requires_grad)
                parameter.copy_(old[rows])
        return own.train(module.training)

    def to_torch(self) -> nn.Module:
        """Torch's module with the same weights, in the same mode: nothing is put together at every pass.

        Raises:
            TypeError: a gate is not a plain Linear.
        """
        if not self.is_plain():
            raise TypeError(f"{type(self).__name__} has gates that are not Linear")
        first = next(self.parameters())
        widths = {"proj_size": self.proj_size} if self.proj_size else {}
        module: nn.Module = self.torch_kind(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            device=first.device,
            dtype=first.dtype,
            **widths,
        )
        with torch.no_grad():
            for parameter, name, rows in self.sources():
                module.get_parameter(name)[rows] = parameter
        return module.train(self.training)

    def _make(self, like: nn.RNNBase, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        self.input_size, self.hidden_size, self.num_layers = like.input_size, like.hidden_size, like.num_layers
        self.bias, self.batch_first, self.dropout = like.bias, like.batch_first, like.dropout
        self.bidirectional, self.proj_size = like.bidirectional, like.proj_size
        bound = 1 / math.sqrt(like.hidden_size)
        width, n_directions = self.proj_size or self.hidden_size, 1 + self.bidirectional

        def linear(n_out: int, n_in: int, bias: bool) -> nn.Linear:
            return linear_within((n_out, n_in), (bound, bound), bias=bias, device=device, dtype=dtype)

        for layer, _, name in self._places():
            own = _Direction()
            for part, n_in in (("from_input", width * n_directions if layer else self.input_size), ("from_hidden", width)):
                own.add_module(part, _Gates())
                for gate in self.gates:
                    getattr(own, part).add_module(gate, linear(self.hidden_size, n_in, self.bias))
            own.projection = linear(self.proj_size, self.hidden_size, False) if self.proj_size else None
            self.add_module(name, own)

    def _places(self) -> Iterator[tuple[int, bool, str]]:
        """Layer, whether against time, and name of every direction, in torch's order."""
        for layer in range(self.num_layers):
            for reverse in (False, True)[: 1 + self.bidirectional]:
                yield layer, reverse, f"layer{layer}{'_reverse' * reverse}"

    def _directions(self) -> Iterator[_Direction]:
        for _, _, name in self._places():
            yield self.get_submodule(name)  # type: ignore[misc]

    def sources(self) -> Iterator[tuple[nn.Parameter, str, slice]]:
        """Every parameter of a module whose gates are Linear, with the name of torch's parameter that it is a part of, and its rows there."""
        for layer, reverse, name in self._places():
            direction, ending = self.get_submodule(name), f"l{layer}{'_reverse' * reverse}"
            for part, kind in (("from_input", "ih"), ("from_hidden", "hh")):
                for i, gate in enumerate(direction.get_submodule(part).children()):
                    for key, parameter in gate.named_parameters():
                        yield parameter, f"{key}_{kind}_{ending}", slice(i * self.hidden_size, (i + 1) * self.hidden_size)
            if self.proj_size:
                yield direction.get_parameter("projection.weight"), f"weight_hr_{ending}", slice(None)

    def flatten_parameters(self) -> None:
        """Nothing: there for code that calls it on torch's module."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Output and last state, as torch's module gives them; with a ``PackedSequence`` the output is one.

        Args:
            input: ``(time, batch, n_in)``, with ``batch_first`` ``(batch, time, n_in)``, or ``(time, n_in)``; or a ``PackedSequence``.
            hx: the first state, ``(layers * directions, batch, hidden)``; a pair of them for an LSTM; None for zeros.
        """
        sizes = order = back = None
        if isinstance(input, PackedSequence):
            x, sizes, order, back = input
        else:
            x = input
            if x.dim() not in (2, 3):
                raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {x.dim()}D instead")
        single = sizes is None and x.dim() == 2
        if single:
            x = x.unsqueeze(0 if self.batch_first else 1)
        n_batch = int(sizes[0]) if sizes is not None else x.shape[0 if self.batch_first else 1]
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}")
        state = self._first_state(x, hx, n_batch, single)
        if order is not None and hx is not None:
            state = tuple(part.index_select(1, order) for part in state)
        output: Any
        if self._is_dense():
            compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
            output, state = (self._fused_outside if compiling else self._fused)(x, sizes, state)
        else:
            output, state = self._looped(x, sizes, state)
        if back is not None:
            state = tuple(part.index_select(1, back) for part in state)
        if single:
            output, state = output.squeeze(0 if self.batch_first else 1), tuple(part.squeeze(1) for part in state)
        if sizes is not None:
            output = PackedSequence(output, sizes, order, back)
        return output, state if len(state) > 1 else state[0]

    def _widths(self) -> tuple[int, ...]:
        """Of every part of the state."""
        return (self.hidden_size,)

    def _first_state(self, x: Tensor, hx: Any, n_batch: int, single: bool) -> States:
        lead, widths = self.num_layers * (1 + self.bidirectional), self._widths()
        if hx is None:
            return tuple(x.new_zeros(lead, n_batch, width) for width in widths)
        state = tuple(part.unsqueeze(1) if single else part for part in ((hx,) if isinstance(hx, Tensor) else hx))
        for part, width in zip(state, widths, strict=True):
            if part.shape != (lead, n_batch, width):
                raise RuntimeError(f"Expected hidden size {(lead, n_batch, width)}, got {tuple(part.shape)}")
        return state

    def _is_dense(self) -> bool:
        """Whether every gate is stored dense, and nobody listens to one of them."""
        for direction in self._directions():
            for gate in (*direction.from_input.children(), *direction.from_hidden.children(), direction.projection):
                if gate is not None and (not (type(gate) is nn.Linear or isinstance(gate, MaskedModule)) or _has_listeners(gate)):
                    return False
        return True

    def is_plain(self) -> bool:
        """Whether every gate is torch's own Linear."""
        gates = [gate for own in self._directions() for part in (own.from_input, own.from_hidden) for gate in part.children()]
        return all(type(gate) is nn.Linear for gate in (*gates, *(own.projection for own in self._directions() if own.projection)))

    def _weights(self) -> list[Tensor]:
        """The weights and biases of all gates as torch's fused pass takes them."""
        found: list[Tensor] = []
        for direction in self._directions():
            parts: list[list[Any]] = [list(direction.from_input.children()), list(direction.from_hidden.children())]
            found += [torch.cat([gate.weight for gate in gates]) for gates in parts]
            if self.bias:
                found += [torch.cat([gate.bias for gate in gates]) for gates in parts]
            if direction.projection is not None:
                found.append(direction.projection.weight)  # type: ignore[arg-type]
        return found

    def _fused(self, x: Tensor, sizes: Tensor | None, state: States) -> tuple[Tensor, States]:
        call: Any = getattr(torch, type(self).__name__.lower())
        first = state if len(state) > 1 else state[0]
        rest = (self._weights(), self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        output, *last = call(x, first, *rest, self.batch_first) if sizes is None else call(x, sizes, first, *rest)
        return output, tuple(last)

    _fused_outside = _disable_dynamo(_fused)

    def _looped(self, x: Tensor, sizes: Tensor | None, state: States) -> tuple[Tensor, States]:
        """Every gate reads the inputs of all times at once, and the hidden states time by time."""
        if sizes is None:
            x = x.transpose(0, 1) if self.batch_first else x
            n_times, n_batch = x.shape[:2]
            each, rows = [n_batch] * n_times, x.reshape(n_times * n_batch, -1)
        else:
            each, rows = sizes.tolist(), x
        last: list[States] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True)[: 1 + self.bidirectional]:
                own: Any = self.get_submodule(f"layer{layer}{'_reverse' * reverse}")
                first = tuple(part[len(last)] for part in state)
                output, final = self._run(own, rows, each, first, reverse)
                outputs.append(output)
                last.append(final)
            rows = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if layer + 1 < self.num_layers and self.dropout:
                rows = nn.functional.dropout(rows, self.dropout, self.training)
        if sizes is None:
            rows = rows.view(n_times, n_batch, -1)
            rows = rows.transpose(0, 1) if self.batch_first else rows
        return rows, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _run(self, own: _Direction, rows: Tensor, each: Sequence[int], first: States, reverse: bool) -> tuple[Tensor, States]:
        """One layer in one direction.

        Args:
            rows: ``(sum(each), n_in)``, time after time.
            each: sequences that are not over at every time; never more than before.
            first: ``(batch, hidden)`` states.
        """
        of_time = list(zip(*(torch.split(gate, list(each)) for gate in own.from_input(rows)), strict=True))
        times = range(len(each) - 1, -1, -1) if reverse else range(len(each))
        n, over, outputs = each[times[0]] if each else 0, [], {}
        now = tuple(part[:n] for part in first)
        for t in times:
            if each[t] < n:  # forwards sequences end
                over.append(tuple(part[each[t] :] for part in now))
                now = tuple(part[: each[t]] for part in now)
            elif each[t] > n:  # backwards they begin
                now = tuple(torch.cat([part, start[n : each[t]]]) for part, start in zip(now, first, strict=True))
            n = each[t]
            now = self._step(own, of_time[t], own.from_hidden(now[0]), now)
            outputs[t] = now[0]
        last = tuple(torch.cat(parts) for parts in zip(now, *reversed(over), strict=True))
        return torch.cat([outputs[t] for t in range(len(each))]), last

    @abstractmethod
    def _step(self, own: _Direction, by_input: Sequence[Tensor], by_hidden: Sequence[Tensor], now: States) -> States:
        """The next state, from ``(batch, hidden)`` of every gate."""

    def extra_repr(self) -> str:
        named = ("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False), ("proj_size", 0)
        told = [f"{name}={getattr(self, name)}" for name, usual in named if getattr(self, name) != usual]
        return ", ".join([str(self.input_size), str(self.hidden_size), *told])


class LSTM(_Recurrent):
    """``nn.LSTM`` with a Linear for each of its gates ``input``, ``forget``, ``cell``, ``output`` (Hochreiter and Schmidhuber 1997)."""

    gates = ("input", "forget", "cell", "output")
    torch_kind = nn.LSTM

    def _widths(self) -> tuple[int, ...]:
        return self.proj_size or self.hidden_size, self.hidden_size

    def _step(self, own: _Direction, by_input: Sequence[Tensor], by_hidden: Sequence[Tensor], now: States) -> States:
        enter, forget, new, leave = (a + b for a, b in zip(by_input, by_hidden, strict=True))
        cell = torch.sigmoid(forget) * now[1] + torch.sigmoid(enter) * torch.tanh(new)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
        return hidden if own.projection is None else own.projection(hidden), cell


class GRU(_Recurrent):
    """``nn.GRU`` with a Linear for each of its gates ``reset``, ``update``, ``new`` (arXiv 1406.1078)."""

    gates = ("reset", "update", "new")
    torch_kind = nn.GRU

    def _step(self, own: _Direction, by_input: Sequence[Tensor], by_hidden: Sequence[Tensor], now: States) -> States:
        reset, update = (torch.sigmoid(a + b) for a, b in zip(by_input[:2], by_hidden[:2], strict=True))
        new = torch.tanh(by_input[2] + reset * by_hidden[2])
        return ((1 - update) * new + update * now[0],)


def _has_listeners(module: nn.Module) -> bool:
    return any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks for part in module.modules()
    )
