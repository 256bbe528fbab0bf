"""Quantised: a masked dense weight, rounded to few bits in the forward pass (fake quantisation with a straight-through gradient)."""

from pydantic import Field
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import QuantisedModule


class Quantised(Layer):
    """Dense weight times a boolean mask, rounded to ``bits`` bits in every forward pass, so that the network is trained as it would be stored.
    Pruners and rewirers see the weights before rounding; a trial's ``stored_bytes`` counts the bits."""

    name = "quantised"
    paper = "arXiv 1712.05877, section 3 (simulated quantisation); arXiv 1308.3432, section 4 (straight-through); arXiv 1806.08342 (per channel)"
    rule = "s_i = max_j |w_ij| / (2**(bits-1) - 1); q_ij = s_i * round(w_ij / s_i); the gradient by w is that by q; absent weights stay 0"
    cannot = (
        "It computes in floating point on a dense matrix, so it is no faster than dense and enters no speed-up. Biases, activations and an"
        " Embedding are not quantised."
    )
    execution = "masked_dense"
    kinds = ("Linear", "Conv2d")
    stores_dense = True

    bits: int = Field(8, ge=2, le=8, description="bits of a stored weight, its sign among them: 2**bits - 1 levels")

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> QuantisedModule:
        """A quantised module with the weights of ``conn``."""
        return QuantisedModule.from_connections(conn, bias, template=template, bits=self.bits)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [Quantised]
