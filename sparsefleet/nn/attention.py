"""Multi-head attention whose projections are ordinary Linear modules, so that whatever works on a Linear works on a projection."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.nn.bounds import linear_within


class MultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` with Linear modules ``query``, ``key``, ``value`` and ``out`` (arXiv 1706.03762, section 3.2.2).

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as for torch's module.
    """

    in_proj_weight = in_proj_bias = None
    """torch's encoder layers look here, and take their slow path, which calls this module, where there is nothing."""
    _qkv_same_embed_dim = False
    out: nn.Module
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, embed_dim: int, num_heads: int, *args: Any, **options: Any) -> None:
        super().__init__()
        device, dtype = options.pop("device", None), options.pop("dtype", None)
        kind: Any = nn.MultiheadAttention
        self._make(kind(embed_dim, num_heads, *args, **options, device="meta"), device, dtype)  # torch checks the arguments
        self._reset_appended()

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> MultiheadAttention:
        """The same with the weights of torch's ``module``, in the same mode; on the meta device where that is."""
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        first = module.out_proj.weight
        own._make(module, first.device, first.dtype)
        with torch.no_grad():
            for parameter, name, rows in own.sources():
                old = module.get_parameter(name)
                parameter.requires_grad_(old.requires_grad)
                parameter.copy_(old[rows])
        return own.train(module.training)

    def _make(self, like: nn.MultiheadAttention, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        self.embed_dim, self.kdim, self.vdim, self.num_heads = like.embed_dim, like.kdim, like.vdim, like.num_heads
        self.dropout, self.batch_first, self.head_dim, self.add_zero_attn = (
            like.dropout,
            like.batch_first,
            like.head_dim,
            like.add_zero_attn,
        )
        self.torch_packs = like._qkv_same_embed_dim
        bias, n = like.in_proj_bias is not None, self.embed_dim
        for name, n_in in (("query", n), ("key", self.kdim), ("value", self.vdim)):
            bound = math.sqrt(6 / (n_in + (3 * n if self.torch_packs else n)))  # Xavier, of one matrix where torch has one
            self.add_module(name, linear_within((n, n_in), (bound, 0.0), bias=bias, device=device, dtype=dtype))
        self.out = linear_within((n, n), (1 / math.sqrt(n), 0.0), bias=like.out_proj.bias is not None, device=device, dtype=dtype)
        for name in ("bias_k", "bias_v"):
            appended = getattr(like, name) is not None
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, n, device=device, dtype=dtype)) if appended else None)

    def sources(self) -> Iterator[tuple[nn.Parameter, str, slice]]:
        """Every parameter of a module whose projections are Linear, with the name of torch's that it is a part of, and its rows there."""
        for i, name in enumerate(("query", "key", "value")):
            rows = slice(i * self.embed_dim, (i + 1) * self.embed_dim)
            linear = self.get_submodule(name)
            yield (
                linear.get_parameter("weight"),
                *(("in_proj_weight", rows) if self.torch_packs else (f"{name[0]}_proj_weight", slice(None))),
            )
            if linear.bias is not None:
                yield linear.get_parameter("bias"), "in_proj_bias", rows
        for key, parameter in self.out.named_parameters():
            yield parameter, f"out_proj.{key}", slice(None)
        for key, parameter in self.named_parameters(recurse=False):
            yield parameter, key, slice(None)

    def reset_parameters(self) -> None:
        """The first weights of ``bias_k`` and ``bias_v``; the projections have their own."""
        self._reset_appended()

    def _reset_appended(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.xavier_normal_(parameter)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Output, and the attention weights where they are needed; arguments and shapes as of torch's module."""
        if query.dim() not in (2, 3):
            raise ValueError(f"query should be unbatched 2D or batched 3D but received {query.dim()}-D query tensor")
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)  # (batch, heads, time, head_dim)
        by_hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if by_hint else _merged(attn_mask, key_padding_mask, q, k)
        p, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = nn.functional.dropout(weights, p) if p else weights
            heads = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            heads = nn.functional.scaled_dot_product_attention(q, k, v, mask, p, by_hint)
        output: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        if not batched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """``(batch, heads, time, head_dim)`` of each, with what the module appends to keys and values."""
        projected = [self.get_submodule(name)(x) for name, x in (("query", query), ("key", key), ("value", value))]
        for i, appended in ((1, self.bias_k), (2, self.bias_v)):
            if appended is not None:
                projected[i] = torch.cat([projected[i], appended.expand(query.shape[0], -1, -1)], 1)
        heads = [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in projected]
        if self.add_zero_attn:
            heads[1:] = [nn.functional.pad(x, (0, 0, 0, 1)) for x in heads[1:]]
        return heads


def _merged(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to ``(batch, heads, time, keys)`` scores; appended keys are never masked."""
    n_batch, n_heads = q.shape[:2]
    total: Tensor | None = None
    for mask in (attn_mask, key_padding_mask):
        if mask is None:
            continue
        added = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -math.inf) if mask.dtype == torch.bool else mask.to(q.dtype)
        added = nn.functional.pad(added, (0, k.shape[2] - added.shape[-1]))
        if mask is key_padding_mask:
            added = added[:, None, None, :]
        elif added.dim() == 3:
            added = added.view(n_batch, n_heads, *added.shape[1:])
        total = added if total is None else total + added
    return total
