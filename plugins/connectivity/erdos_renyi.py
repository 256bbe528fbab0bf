"""Erdős–Rényi connectivity: another name for ``random``.

The graph G(n, p) connects every pair independently with probability p, so its number of connections is random. Given that number, every set of
connections is equally likely, which is what ``random`` draws; with an exact count there is nothing else to draw. What SET calls Erdős–Rényi
(arXiv 1707.04780, Eq. 1) also says how a budget is spread over layers: that is the distribution ``er``.
"""

from sparsefleet_plugins.connectivity.random import RandomConnectivity

from sparsefleet import Connectivity, hookimpl


class ErdosRenyi(RandomConnectivity):
    """Another name for ``random``: G(n, p) given its number of connections is uniform over all sets of that size.

    To spread a budget over layers as SET does, ask for ``distribution: er``.
    """

    name = "erdos-renyi"
    paper = "doi:10.5486/PMD.1959.6.3-4.12, model G(n, M); arXiv 1707.04780, section 2"


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [ErdosRenyi]
