"""k-winners for feature maps (arXiv 1903.11257, section 3.2), over a whole picture or at each of its places."""

from typing import Literal

from pydantic import Field
from sparsefleet_plugins.activations.k_winners import KWinners, KWinnersModule
from torch import nn

from sparsefleet import Activation, hookimpl


class KWinners2d(KWinners):
    """Passes on the strongest units of each sample's feature maps, boosted by channel, and zeroes the rest.

    ``global`` compares all units of a sample, so a busy place has more winners than a quiet one; ``local`` compares the channels of one place, so
    every place has as many. A channel's duty cycle is the share of its units that were active, over samples and places, so pictures may change
    their size. On inputs without places, behind a Linear layer, both are k-winners.
    """

    name = "k-winners-2d"
    rule = "y = x where x exp(-boost duty[channel]) is among the k largest of the sample (global) or of the place (local), else 0"

    scope: Literal["global", "local"] = Field(
        "global", description="among which units there are winners: all of a sample, or those of a place"
    )

    def build(self, features: int) -> nn.Module:
        """The module for ``features`` channels."""
        return KWinnersModule(self, features, local=self.scope == "local")


@hookimpl
def sparsefleet_activations() -> list[type[Activation]]:
    """Registers this module's activation."""
    return [KWinners2d]
