"""3x3 convolutions with a quarter of the multiplications, for training in float32 on CPUs.

Winograd's algorithm F(4x4, 3x3) (Lavin and Gray 2016): 36 products give 4x4 outputs of a channel that
take 144 directly. Each step is a matrix product, so gradients are products with the same matrices:

    V = B D,  M = V U with U = G W,  Y = A M      (D: tiles of 6x6 inputs, Y: tiles of 4x4 outputs)

Work goes in chunks of tiles that stay in the cache. With the points below, rounding errors are close to those
of a direct convolution (1.1e-6 and 0.9e-6 of the result's norm with 256 channels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_SIDE = 4  # of the outputs of a tile
_TILE = _SIDE + 2  # of its inputs
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))  # and infinity
_CHUNK_BYTES = 10 * 2**20  # of one array of a chunk; a few are in use at once


class _Matrices(NamedTuple):
    """The transforms of tiles flattened by rows: inputs B (36, 36), weights G (36, 9), outputs A (16, 36)."""

    inputs: Tensor
    weights: Tensor
    outputs: Tensor


@lru_cache(maxsize=8)
def _matrices(dtype: torch.dtype) -> _Matrices:
    def powers(count: int) -> np.ndarray:  # (6, count): of each point, and for infinity the last one alone
        return np.concatenate([np.array(_POINTS)[:, None] ** np.arange(count), np.eye(count)[-1:]])

    one_axis = np.linalg.inv(powers(_TILE)).T, powers(3), powers(_SIDE).T
    return _Matrices(*(torch.from_numpy(np.kron(m, m)).to(dtype).contiguous() for m in one_axis))


class _Tiling(NamedTuple):
    """Tiles of a group of images (N, H, W, channels), padded by one pixel before and one or more after."""

    images: int
    rows: int  # of tiles
    columns: int

    @staticmethod
    def of(x: Tensor) -> _Tiling:
        return _Tiling(x.shape[0], -(-x.shape[1] // _SIDE), -(-x.shape[2] // _SIDE))

    @property
    def size(self) -> int:
        return self.images * self.rows * self.columns

    def padded(self, x: Tensor, border: int) -> Tensor:
        """x (N, H, W, channels) with `border` zeros before it, and after it to the end of the last tile."""
        after = (border + size * _SIDE - old for size, old in zip(self[1:], x.shape[1:3], strict=True))
        below, right = after
        return F.pad(x, (0, 0, border, right, border, below))

    def view(self, padded: Tensor, first: int, side: int) -> Tensor:
        """The tiles of the rows from `first`: (side, side, N, rows, columns, channels); 6: overlapping."""
        image, row, column, channel = padded.stride()
        shape = side, side, *self, padded.shape[3]
        strides = row, column, image, _SIDE * row, _SIDE * column, channel
        return padded.as_strided(shape, strides, padded.storage_offset() + first * _SIDE * row)


def _groups(x: Tensor, channels: int) -> Iterator[tuple[slice, list[tuple[int, _Tiling]]]]:
    """Images that are computed together, and their chunks: the first row of tiles, and the tiling.

    Several small images, or some rows of a large one.
    """
    whole = _Tiling.of(x)
    fitting = max(1, _CHUNK_BYTES // (_TILE * _TILE * channels * x.element_size() * whole.columns))  # rows
    together = max(1, fitting // whole.rows)
    for start in range(0, whole.images, together):
        images = min(together, whole.images - start)
        rows = range(0, whole.rows, fitting)
        chunks = [(row, _Tiling(images, min(fitting, whole.rows - row), whole.columns)) for row in rows]
        yield slice(start, start + images), chunks


class _Buffers:
    """Memory that the chunks use again."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; the first call of a name asks for the largest one."""
        size = math.prod(shape)
        if name not in self._flat:
            self._flat[name] = self._like.new_empty(size)
        return self._flat[name][:size].view(shape)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether this is the faster way for a 3x3 convolution of stride 1 and padding 1.

    Transforms pay with many channels, and with enough tiles for one transform of the weights.
    """
    return min(weight.shape[:2]) >= 96 and _Tiling.of(x.permute(0, 2, 3, 1)).size >= 80


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of x (N, C, H, W) with weight (K, C, 3, 3), stride 1 and padding 1.

    Returns:
        (N, K, H, W), channels last in memory.
    """
    result: Tensor = _Convolution.apply(x, weight, bias)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `convolve`."""
        ctx.save_for_backward(x, weight)
        matrices, buffers = _matrices(x.dtype), _Buffers(x)
        filters = weight.shape[0]
        transformed = _transform_weight(matrices, weight)  # (36, K, C)
        shape = x.shape[0], filters, *x.shape[2:]
        # Not a view, which what follows could not change in place.
        result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        x, y = x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1)  # (N, H, W, channels)
        for images, chunks in _groups(x, max(weight.shape[:2])):
            inputs = _Tiling.of(x[images]).padded(x[images], 1)
            outputs = _Tiling.of(x[images]).padded(y[images], 0)
            for first, tiling in chunks:
                values = _transform_inputs(matrices, buffers, inputs, first, tiling)
                products = buffers.get("products", _TILE * _TILE, tiling.size, filters)
                torch.bmm(values, transformed.transpose(1, 2), out=products)
                flat = buffers.get("outputs", _SIDE * _SIDE, tiling.size * filters)
                torch.mm(matrices.outputs, products.flatten(1), out=flat)
                tiles = flat.view(_SIDE, _SIDE, *tiling, filters)
                tiling.view(outputs, first, _SIDE).copy_(tiles if bias is None else tiles.add_(bias))
            y[images] = outputs[:, : x.shape[1], : x.shape[2]]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the inputs that need one, from that of the output (N, K, H, W)."""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        matrices, buffers = _matrices(x.dtype), _Buffers(x)
        filters, channels = weight.shape[:2]
        transformed = _transform_weight(matrices, weight)  # (36, K, C)
        x, gradient = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        gradient_x = x.new_empty(x.shape) if for_x else None
        sums = x.new_zeros(_TILE * _TILE, filters, channels) if for_weight else None
        for images, chunks in _groups(x, max(filters, channels)):
            whole = _Tiling.of(x[images])
            inputs, outputs = whole.padded(x[images], 1), whole.padded(gradient[images], 0)
            spread = torch.zeros_like(inputs) if for_x else None
            for first, tiling in chunks:
                tiles = buffers.get("outputs", _SIDE, _SIDE, *tiling, filters)
                tiles.copy_(tiling.view(outputs, first, _SIDE))
                products = buffers.get("products", _TILE * _TILE, tiling.size, filters)
                torch.mm(
                    matrices.outputs.T, tiles.view(_SIDE * _SIDE, -1), out=products.view(_TILE * _TILE, -1)
                )
                if sums is not None:
                    values = _transform_inputs(matrices, buffers, inputs, first, tiling)
                    sums.baddbmm_(products.transpose(1, 2), values)
                if spread is not None:
                    values = buffers.get("values", _TILE * _TILE, tiling.size, channels)
                    torch.bmm(products, transformed, out=values)
                    back = buffers.get("inputs", _TILE * _TILE, tiling.size * channels)
                    torch.mm(matrices.inputs.T, values.flatten(1), out=back)
                    _add_tiles(spread, back.view(_TILE, _TILE, *tiling, channels), first, tiling)
            if gradient_x is not None and spread is not None:
                gradient_x[images] = spread[:, 1 : 1 + x.shape[1], 1 : 1 + x.shape[2]]
        return (
            gradient_x.permute(0, 3, 1, 2) if gradient_x is not None else None,
            (sums.flatten(1).T @ matrices.weights).view(weight.shape) if sums is not None else None,
            gradient.sum((0, 1, 2)) if for_bias else None,
        )


def _transform_weight(matrices: _Matrices, weight: Tensor) -> Tensor:
    """U (36, K, C) of a weight (K, C, 3, 3)."""
    return (matrices.weights @ weight.reshape(-1, 9).T).view(_TILE * _TILE, *weight.shape[:2])


def _transform_inputs(
    matrices: _Matrices, buffers: _Buffers, padded: Tensor, first: int, tiling: _Tiling
) -> Tensor:
    """V (36, tiles, C) of a chunk of a padded group of images."""
    channels = padded.shape[3]
    tiles = buffers.get("inputs", _TILE, _TILE, *tiling, channels)
    tiles.copy_(tiling.view(padded, first, _TILE))
    values = buffers.get("values", _TILE * _TILE, tiling.size, channels)
    torch.mm(matrices.inputs, tiles.view(_TILE * _TILE, -1), out=values.flatten(1))
    return values


def _add_tiles(padded: Tensor, tiles: Tensor, first: int, tiling: _Tiling) -> None:
    """Add overlapping tiles (6, 6, N, rows, columns, C) where `_transform_inputs` read them."""
    # Four parts, none of which overlaps itself.
    target = tiling.view(padded, first, _TILE)
    parts = slice(0, _SIDE), slice(_SIDE, _TILE)
    for rows in parts:
        for columns in parts:
            target[rows, columns].add_(tiles[rows, columns])
