"""The kit names each fault of layers that are wrong as public implementations are wrong."""

import numpy as np
import pytest
import torch
from faults import assert_named, failed_checks
from sparsefleet_plugins.layers.block import Block, BlockLinear
from sparsefleet_plugins.layers.csr import Csr, CsrLinear
from sparsefleet_plugins.layers.masked import Masked
from torch import nn

from sparsefleet.nn.masked import MaskedModule


class _Gradient(torch.autograd.Function):
    """The identity whose backward is wrong by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


class WrongByInput(CsrLinear):  # the transposed product with another scale: earlier layers learn too fast
    def forward(self, x):
        return super().forward(_Gradient.apply(x, 2.0))


class WrongByWeight(CsrLinear):  # a mean over the batch where the loss has taken it already
    def forward(self, x):
        self.values_.register_hook(lambda grad: grad / len(x)) if not self.values_._backward_hooks else None
        return super().forward(x)


class WrongByBias(CsrLinear):  # the bias enters twice in backward
    def forward(self, x):
        return super().forward(x) + (self.bias - self.bias.detach())


class ForgetfulSlots(CsrLinear):  # momentum stays where it was while the connections move
    def remap_slot(self, slot, remap):
        return slot


class ForgetfulBlocks(BlockLinear):  # the same with blocks
    def remap_slot(self, slot, remap):
        return slot


class NewParameter(CsrLinear):  # nn.Parameter(new values) at every change: optimizers go on training the old one
    def set_topology(self, remap, values):
        super().set_topology(remap, values)
        self.values_ = nn.Parameter(values.clone())


class NewBias(CsrLinear):  # rebuilt as a whole: the bias that param_groups holds is no longer used
    def set_topology(self, remap, values):
        super().set_topology(remap, values)
        self.bias = nn.Parameter(self.bias.detach().clone())


class DenseInside(CsrLinear):  # .to_dense() at every call
    def forward(self, x):
        dense = torch.zeros(self.matrix_shape, dtype=x.dtype).view(-1).index_put((self.flat_sites(),), self.values_)
        return x @ dense.view(self.matrix_shape).T + self.bias


class KeepsMask(CsrLinear):  # a bool mask of the whole layer beside the index, outside of parameters and buffers
    def _store(self, conn):
        super()._store(conn)
        self.kept = {"mask": np.zeros(conn.shape, dtype=bool)}


class HiddenWeights(CsrLinear):  # a second, dense weight that connections() does not tell: the density is a lie
    def _store(self, conn):
        super()._store(conn)
        self.hidden = nn.Parameter(torch.zeros(conn.shape, dtype=conn.weight.dtype))

    def forward(self, x):
        return super().forward(x) + x @ self.hidden.T


class _Unmasked(MaskedModule):
    """Multiplies with the stored weight, which is zero at absent sites when it is built."""

    def forward(self, x):
        bias = 0 if self.bias is None else self.bias
        return nn.functional.linear(x, self.weight_parameter) + bias


class GradientLeak(_Unmasked):  # torch.nn.utils.prune done once: weights are zeroed, and the first step brings them back
    def enforce(self):
        pass


class MomentumLeak(_Unmasked):  # gradients are masked, but the slots of dropped weights move them on
    def forward(self, x):
        mask = self.mask
        if not self.weight_parameter._backward_hooks:
            self.weight_parameter.register_hook(lambda grad: grad * mask)
        return super().forward(x)

    def enforce(self):
        pass

    def remap_slot(self, slot, remap):
        return slot


class WeightDecayLeak(_Unmasked):  # dropped weights keep their value and only decay: they still compute
    def forward(self, x):
        mask = self.mask
        if not self.weight_parameter._backward_hooks:
            self.weight_parameter.register_hook(lambda grad: grad * mask)
        return super().forward(x)

    def enforce(self):
        pass

    def set_topology(self, remap, values):
        self.keeps_absent = True
        super().set_topology(remap, values)


class SinglePositions(CsrLinear):  # columns through float32: beyond 2**24 only every second one exists
    def _store(self, conn):
        super()._store(conn)
        self.col = self.col.float().to(self.col.dtype).clamp(max=conn.n_in - 1)


class CountsInPython(CsrLinear):  # a learned scale that is no buffer: lost with the checkpoint
    n_steps = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.n_steps += 1
        return super().forward(x) * (1 + 1e-3 * (self.n_steps > 5))


class SharesWeights(CsrLinear):  # keeps the tensor that it was given, and trains it
    def _store(self, conn):
        super()._store(conn)
        self.values_ = nn.Parameter(conn.weight)


class Dropout(CsrLinear):  # noise in training
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class ReadsMemory(CsrLinear):  # hands data_ptr() to a kernel that expects rows one after another
    def forward(self, x):
        return super().forward(x.as_strided(x.shape, (x.shape[-1], 1)) if x.dim() == 2 else x)


class Cached(CsrLinear):  # outputs kept by the address of the input, as benchmarks of one buffer reward
    def forward(self, x):
        kept = self.__dict__.setdefault("kept", {})
        if not torch.is_grad_enabled():
            return kept.setdefault((x.data_ptr(), x.shape), super().forward(x))
        return super().forward(x)


class TiresOut(CsrLinear):  # right while it is checked
    n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        return super().forward(x) * (1 if self.n_calls <= 60 else 1.001)


@pytest.mark.parametrize(
    ("module", "base", "check", "words"),
    [
        # wrong gradients, each kind by its name
        (WrongByInput, Csr, "equals_the_masked_reference", "by_input"),
        (WrongByWeight, Csr, "equals_the_masked_reference", "by_weight"),
        (WrongByBias, Csr, "equals_the_masked_reference", "by_bias"),
        # breaking the optimizer
        (ForgetfulSlots, Csr, "rewires_in_place", "slots"),
        (ForgetfulBlocks, Block, "rewires_in_place", "slots"),
        (NewParameter, Csr, "rewires_in_place", "the same Parameter object"),
        (NewBias, Csr, "trains_only_its_connections", "the same Parameter objects"),
        # absent weights that come back
        (GradientLeak, Masked, "trains_only_its_connections", "absent weights"),
        (MomentumLeak, Masked, "trains_only_its_connections", "momentum"),
        (WeightDecayLeak, Masked, "trains_only_its_connections", "weight decay"),
        # densifying, and lying about its density
        (DenseInside, Csr, "allocates_by_connections", "MiB"),
        (KeepsMask, Csr, "holds_what_it_says", "stores_dense = True"),
        (HiddenWeights, Csr, "trains_only_its_connections", "outputs of the connections it tells"),
        (HiddenWeights, Csr, "holds_what_it_says", "stores_dense = True"),
        # positions beyond float32
        pytest.param(SinglePositions, Csr, "computes_far_units_exactly", "2**24", marks=pytest.mark.slow),
        # computing less than it says
        (Cached, Csr, "computes_at_every_call", "data_ptr()"),
        (TiresOut, Csr, "computes_at_every_call", "count no calls"),
        # state, copies, inputs
        (CountsInPython, Csr, "resumes_to_the_bit", "buffers"),
        (SharesWeights, Csr, "builds_independent_modules", "copy what you are given"),
        (Dropout, Csr, "takes_any_batch", "training and evaluation"),
        (ReadsMemory, Csr, "takes_any_batch", "contiguous"),
    ],
)
def test_each_fault_is_named(module, base, check, words):
    class Wrong(base):
        """Builds a wrong module."""

        name = "wrong"

        def build(self, template, conn, bias):
            return module.from_connections(conn, bias, **({"template": template} if issubclass(module, MaskedModule) else {}))

    assert_named(Wrong(), check, words)


@pytest.mark.parametrize("layer", [Csr, Block, Masked])
def test_without_the_fault_nothing_fails(layer):
    assert failed_checks(layer(), None) == {}
