"""What data sets of colour pictures share: normalising by channel, and the standard augmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsefleet import Rng


def normalised(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(n, channels, height, width)`` uint8 to float32: grey levels over 255, less ``mean``, over ``std``, by channel."""
    shape = (1, -1, 1, 1)
    return pictures.float().div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def crop_and_flip(x: Tensor, rng: Rng, mean: Sequence[float], std: Sequence[float], padding: int = 4) -> Tensor:
    """Every picture is padded with ``padding`` black pixels on each side, a random window of its own size is cut out, and half are mirrored.

    The augmentation of arXiv 1512.03385, section 4.2. Black is what 0 is after ``normalised``, as where pictures are padded before they are
    normalised.

    Args:
        x: ``(n, channels, height, width)`` normalised pictures.
        rng: three draws per picture.
    """
    n, channels, height, width = x.shape
    black = (-torch.tensor(mean) / torch.tensor(std)).to(x).view(1, -1, 1, 1)
    padded = black.expand(n, channels, height + 2 * padding, width + 2 * padding).clone()
    padded[:, :, padding : padding + height, padding : padding + width] = x
    top, left = (rng.integers(n, 2 * padding + 1, x.device).view(-1, 1) for _ in range(2))
    mirrored = rng.integers(n, 2, x.device).view(-1, 1) == 1
    rows = top + torch.arange(height, device=x.device)  # (n, height)
    along = torch.arange(width, device=x.device)
    cols = left + torch.where(mirrored, width - 1 - along, along)  # (n, width)
    picture, channel = torch.arange(n, device=x.device).view(-1, 1, 1, 1), torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return padded[picture, channel, rows[:, None, :, None], cols[:, None, None, :]]
