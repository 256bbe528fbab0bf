"""Small networks whose units can be removed, with an input for each.

A layer before a BatchNorm has no bias: its gradient is rounding alone, which Adam and RMSprop would turn into steps.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A convolution, a block whose result is added to its input, and a Linear on the averaged map."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.outer, self.outer_norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.inner_norm(self.inner(x)))
        x = F.relu(x + self.outer_norm(self.outer(y)))
        return self.head(x.mean((2, 3)))


def linear():
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3))


def linear_sigmoid():
    return nn.Sequential(nn.Linear(7, 9), nn.Sigmoid(), nn.Linear(9, 6), nn.Softplus(), nn.Linear(6, 3))


def batch_norm():
    return nn.Sequential(
        nn.Linear(7, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )


def layer_norm():
    parts = (nn.Linear(7, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 6), nn.LayerNorm(6, elementwise_affine=False), nn.GELU())
    return nn.Sequential(*parts, nn.Linear(6, 3))


def conv():
    first = (nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, nn.Conv2d(5, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))


FLAT, MAP, SMALL_MAP = (11, 7), (11, 2, 12, 12), (11, 2, 6, 6)
NETS = {
    "linear": (linear, FLAT),
    "linear_sigmoid": (linear_sigmoid, FLAT),
    "batch_norm": (batch_norm, FLAT),
    "layer_norm": (layer_norm, FLAT),
    "conv": (conv, MAP),
    "residual": (Residual, SMALL_MAP),
}


def made(name, seed=0):
    """The network in float64 with weights and statistics of a seed, and an input."""
    build, shape = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().double()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)) and module.weight is not None:
                for tensor in (module.weight, module.bias):
                    nn.init.normal_(tensor, 0.5)
        x = torch.randn(shape, dtype=torch.float64)
        network(x)
    return network, x
