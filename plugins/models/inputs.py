"""What models ask of their inputs."""

from math import prod

from sparsefleet import DataInfo, UserError


def n_numbers(model: str, data: DataInfo) -> int:
    """Numbers of an input.

    Raises:
        UserError: the inputs are tokens.
    """
    if data.vocabulary:
        raise UserError(f"model {model!r} takes numbers; the data set has tokens", fix="a model of sentences, e.g. sentiment-lstm")
    return prod(data.input_shape)


def picture_shape(model: str, data: DataInfo) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        UserError: the inputs are no pictures.
    """
    n_numbers(model, data)
    if len(data.input_shape) != 3:
        raise UserError(f"model {model!r} takes pictures (channels, height, width); the data set has inputs of shape {data.input_shape}")
    channels, height, width = data.input_shape
    return channels, height, width


def after_two_poolings(model: str, data: DataInfo, *, kernel: int) -> tuple[int, int, int]:
    """Channels of the input, then height and width behind two times an unpadded convolution and 2 x 2 pooling.

    Raises:
        UserError: the inputs are no pictures, or too small.
    """
    channels, *sides = picture_shape(model, data)
    height, width = (((side - kernel + 1) // 2 - kernel + 1) // 2 for side in sides)
    if min(height, width) < 1:
        least = 3 * kernel + 1
        raise UserError(f"model {model!r} takes pictures from {least} x {least} on, got {sides[0]} x {sides[1]}")
    return channels, height, width
