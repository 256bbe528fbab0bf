"""The kit names each fault of layers that are right in one shape, one dtype or at one moment alone."""

import pytest
import torch
from faults import assert_named
from sparsefleet_plugins.layers.csr import Csr, CsrLinear


class NoBiasGradientForOne(CsrLinear):  # a special path for one example
    def forward(self, x):
        y = super().forward(x)
        return y - self.bias + self.bias.detach() if x.dim() == 2 and len(x) == 1 and self.bias is not None else y


class NarrowingOnly(CsrLinear):  # out and in changed places: as long as n_out < n_in nobody sees it
    def forward(self, x):
        return super().forward(x) * (1 if self.in_features > self.out_features else 1.01)


class FoursOfInputs(CsrLinear):  # a loop unrolled by four, without its rest
    def forward(self, x):
        whole = self.in_features // 4 * 4
        return super().forward(torch.cat([x[..., :whole], torch.zeros_like(x[..., whole:])], -1))


class TilesOfExamples(CsrLinear):  # a kernel's grid of 32 examples, rounded down
    def forward(self, x):
        y = super().forward(x)
        return torch.cat([y[:32], 0 * y[32:]]) if x.dim() == 2 and len(x) > 32 else y


class Saturates(CsrLinear):  # a clamp against overflow
    def forward(self, x):
        return super().forward(x).clamp(-50, 50)


class HidesNan(CsrLinear):  # nan_to_num: the diverged training looks well
    def forward(self, x):
        return super().forward(x.nan_to_num())


class PlainTensor(CsrLinear):  # a tensor that is no buffer
    def _store(self, conn):
        super()._store(conn)
        self.scale = torch.ones(conn.n_out, dtype=conn.weight.dtype)

    def forward(self, x):
        return super().forward(x) * self.scale


class Overwrites(CsrLinear):  # the second backward pass replaces the first: accumulated batches are lost
    def forward(self, x):
        if not self.values_._backward_hooks:
            self.values_.register_hook(lambda grad: grad - (0 if self.values_.grad is None else self.values_.grad))
        return super().forward(x)


class DetachesSequences(CsrLinear):  # .data where (batch, time, features) is flattened
    def forward(self, x):
        return super().forward(x.detach() if x.dim() == 3 else x)


class LastPassOnly(CsrLinear):  # the dense gradient of the last accumulated batch alone
    def best_absent(self, present, k):
        self._seen = self._seen[-1:]
        return super().best_absent(present, k)


class StaleInEvaluation(CsrLinear):  # a packed copy for inference, renewed when data_ptr() changes: it never does
    def forward(self, x):
        if self.training:
            return super().forward(x)
        kept = self.__dict__.setdefault("packed", {})
        packed = kept.setdefault(self.values_.data_ptr(), self.values_.detach().clone())
        now, self.values_.data = self.values_.data, packed
        try:
            return super().forward(x)
        finally:
            self.values_.data = now


@pytest.mark.parametrize(
    ("module", "check", "words"),
    [
        (NoBiasGradientForOne, "computes_in_any_shape", "grad_output.sum(0)"),
        (NarrowingOnly, "computes_in_any_shape", "at 20 x 12"),
        (FoursOfInputs, "computes_in_any_shape", "at 13 x 7"),
        (TilesOfExamples, "computes_in_any_shape", "a batch of 33"),
        (Saturates, "computes_in_any_shape", "relative error of 1"),
        (HidesNan, "shows_what_is_not_finite", "nan_to_num"),
        (PlainTensor, "follows_its_dtype", "parameters or buffers"),
        (Overwrites, "adds_up_gradients", "after two backward passes"),
        (DetachesSequences, "adds_up_gradients", "detach nothing"),
        (LastPassOnly, "adds_up_gradients", "summed over two passes"),
        (StaleInEvaluation, "evaluates_what_it_has_learned", "after step 1"),
    ],
)
def test_each_fault_is_named(module, check, words):
    class Wrong(Csr):
        """Builds a wrong module."""

        name = "wrong"

        def build(self, template, conn, bias):
            return module.from_connections(conn, bias)

    assert_named(Wrong(), check, words)
