"""Models of every layer and representation, by formula, and files made by hand."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

import minicompress as mc
from minicompress.nn.composition import Parallel, Residual
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.storage import container
from minicompress.storage.container import dumps, loads
from minicompress.testing.checks import check_codec, same

ROOT = Path(__file__).parents[1]

GOLDEN = Path(__file__).parent / "golden"

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)


def one_dense(weight, bias=None):
    return mc.Sequential((Dense(weight, bias),))


def with_checksum(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def frame(bulk, coded):
    """A file of these two sections, with the checksum right."""
    return with_checksum(b"mcz\x01" + container.put_varint(len(bulk)) + bulk + coded)


def numbers(shape, dtype=F4):
    return ((np.arange(np.prod(shape)) * 37 % 64 - 31) / 16).astype(dtype).reshape(shape)


def codes(shape, dtype=np.int8):
    return (np.arange(np.prod(shape)) ** 2 * 7 % 15 - 7).astype(dtype).reshape(shape)


def quantized(codes, num_bits=4, dtype=F4, axis=None, block_size=None, zero_point=0):
    shape = codes.shape
    if axis is not None:
        n = shape[axis] if block_size is None else -(-shape[axis] // block_size)
        shape = (n,) if block_size is None else (*shape[:axis], n, *shape[axis + 1 :])
    grid = () if axis is None else shape
    scale = np.full(grid, 0.3, dtype)
    zero = np.full(grid, zero_point)
    return mc.Quantized(codes, scale, zero, num_bits, True, axis, block_size, dtype)


def every_layer():
    channels = [numbers((3,)), numbers((3,)), numbers((3,)), abs(numbers((3,)))]
    return mc.Sequential(
        (
            Conv2D(numbers((3, 3, 2, 4)), numbers((4,)), stride=(1, 2), padding="same"),
            ReLU(),
            Conv2D(numbers((2, 1, 2, 4)), padding=((0, 1), (2, 0)), dilation=(2, 1), groups=2),
            LeakyReLU(0.3),
            MaxPool2D(2, 1, "same"),
            AvgPool2D((2, 1), count_include_pad=True),
            Dropout(0.25),
            Conv2D(numbers((1, 1, 4, 3))),
            BatchNorm(*channels, epsilon=0.001),
            Tanh(),
            GlobalAvgPool2D(),
            Flatten(),
            Dense(numbers((3, 5)), numbers((5,))),
            Sigmoid(),
            LeakyReLU(),
            Dense(numbers((5, 2))),
            Softmax(),
        )
    )


def every_newer_layer():
    """The layers that came after the first files, with all their options."""
    transposed = {"stride": (2, 1), "padding": ((1, 0), (0, 1)), "output_padding": (1, 0)}
    return mc.Sequential(
        (
            ConvTranspose2D(numbers((3, 2, 1, 4)), numbers((4,)), dilation=(1, 2), **transposed),
            PReLU(numbers((4,))),
            ConvTranspose2D(numbers((2, 2, 2, 6)), padding="same", groups=2),
            MaxPool2D(3, 2, 1, ceil_mode=True),
            AvgPool2D((2, 1), padding="same", ceil_mode=True, count_include_pad=True),
            Clip(),
            Clip(0, 6),
            Clip(-0.0, 1.5),
            HardSigmoid(),
            HardSigmoid(1 / 6),
            HardSwish(),
            SiLU(),
            Upsample2D((1, 2)),
            ChannelShuffle(3),
            LocalResponseNorm(3),
            LocalResponseNorm(5, 0.001, 0.5, 2.0),
            Add(),
            Concat(),
            BatchNorm(*[numbers((6,)) + 2] * 4),
            GlobalAvgPool2D(keep_axes=True),
        )
    )


def residual_network():
    """Shortcuts, a gate, values side by side, and two outputs."""

    def norm(channels):
        return BatchNorm(*[numbers((channels,)) + 2] * 4)

    def conv(*shape, **options):
        return Conv2D(numbers(shape), padding="same", **options)

    packed = Conv2D(quantized(codes((3, 3, 4, 4)), axis=3), numbers((4,)), padding="same")
    narrow, wide = Conv2D(numbers((1, 1, 6, 2))), Conv2D(numbers((1, 1, 2, 6)), numbers((6,)))
    down = (conv(3, 3, 4, 6, stride=2), norm(6))
    network = mc.Sequential(
        (
            *(conv(3, 3, 2, 4), norm(4), ReLU()),
            Residual(conv(3, 3, 4, 4), norm(4), ReLU(), packed),
            Clip(0, 6),
            Parallel((conv(1, 1, 4, 6, stride=2), down), Add()),
            Parallel(
                ((), (GlobalAvgPool2D(True), narrow, ReLU(), wide, HardSigmoid(1 / 6))), Multiply()
            ),
            Parallel(((), conv(1, 1, 6, 3), conv(3, 3, 1, 6, groups=6)), Concat()),
            *(conv(1, 1, 15, 5), GlobalAvgPool2D(), Dense(numbers((5, 3)), numbers((3,)))),
        )
    )
    return Network(network.layers, network.inputs, (*network.outputs, 3))


def every_representation():
    half = np.dtype(np.float16)
    places = np.array([0, 5, 6, 40])
    nested = mc.Sparse((7, 6), places, mc.Clustered(np.array([0, 2, 1, 2]), numbers((3,))))
    factors = (
        quantized(codes((6, 2)), axis=1),
        mc.Sparse((2, 8), np.array([1, 9]), numbers((2,))),
    )
    kernel = mc.LowRank(
        (numbers((2, 2), half), numbers((3, 3, 2, 2), half), numbers((2, 4), half)),
        "ia,hwab,bo->hwio",
    )
    return mc.Sequential(
        (
            Conv2D(kernel, mc.Clustered(np.array([0, 1, 1, 0]), numbers((2,), half))),
            Conv2D(mc.LowRank((numbers((2, 2, 3, 2), F8), numbers((2, 4), F8)), "hwir,ro->hwio")),
            Conv2D(mc.LowRank((numbers((2, 3, 2)), numbers((2, 2, 4))), "hir,rwo->hwio")),
            Dense(nested, quantized(codes((6,)), zero_point=-1)),
            Dense(mc.LowRank(factors, "ir,ro->io")),
            Dense(mc.LowRank((numbers((2, 8)), numbers((3, 2))), "ri,or->io")),
            Dense(quantized(codes((3, 300)), axis=1, block_size=7, dtype=F8)),
            Dense(quantized(mc.Sparse((300, 9), np.arange(3, 2700, 50), codes((54,)) | 8), 5)),
            Dense(quantized(codes((9, 4), np.int64), num_bits=16)),
            Dense(np.zeros((0, 3), F4)),
        )
    )


def pruned_network():
    """Dead rows and columns, neighbours, two streams that Huffman or packing would be long for."""
    i, j = np.meshgrid(np.arange(784), np.arange(40), indexing="ij")
    first = np.where(((i // 28 + j) % 9 < 2) & ((i * j) % 11 < 2) & (j % 3 > 0), 1 + i % 2, 0)
    second = np.where((np.arange(400) * 7919 % 97) < 9, -1, 0).reshape(40, 10)
    return mc.Sequential(
        (
            Flatten(),
            Dense(quantized(first.astype(np.int8)), quantized(codes((40,), np.int8))),
            ReLU(),
            Dense(quantized(second.astype(np.int8)), quantized(np.zeros(10, np.int8))),
        )
    )


def half_network():
    """float16 with scales of float32, finer than float16 has them, and of every granularity."""
    half = np.dtype(np.float16)

    def coded(shape, **options):
        rep = quantized(codes(shape), **options)
        scale = F4.type(1e-6) * (1 + np.arange(rep.scale.size).reshape(rep.scale.shape)).astype(F4)
        return dataclasses.replace(rep, scale=scale, dtype=half)

    values = dataclasses.replace(coded((20,), num_bits=16), codes=np.arange(-10, 10) * 3000)
    return mc.Sequential(
        (
            Conv2D(coded((3, 3, 2, 4), axis=3), coded((4,), zero_point=-1)),
            Flatten(),
            Dense(coded((64, 5), axis=0, block_size=7), numbers((5,), half)),
            Dense(mc.Sparse((5, 8), np.arange(0, 40, 2), values)),
            Dense(quantized(codes((8, 3)), dtype=half)),
        )
    )


GOLDEN_MODELS = {
    "half_network": (half_network, "smallest"),
    "every_layer": (every_layer, "smallest"),
    "every_newer_layer": (every_newer_layer, "smallest"),
    "residual_network": (residual_network, "smallest"),
    "representations": (every_representation, "smallest"),
    "pruned_network": (pruned_network, "smallest"),
    "pruned_network_huffman": (pruned_network, "huffman"),
    "pruned_network_packed": (pruned_network, "packed"),
}


def law_round_trip(encode, decode, model):
    check_codec(encode, decode, model)
    for layer in decode(encode(model)).layers:
        for rep in layer.parameters().values():
            assert not mc.decode(rep).flags.writeable


SMALL = dumps(mc.Sequential((Dense(quantized(codes((4, 3))), numbers((3,))), ReLU())))


def law_readable(encode, model):
    """No file is written that cannot be read again, however cheap its codes are."""
    assert same(loads(encode(model)), model)


def costly_to_decode():
    """A million decisions for a few bytes: other codings must be taken."""
    array = np.add.outer(np.arange(64), np.arange(2**13)).astype(np.int8) % 2
    array[0, 0] = 2
    return one_dense(quantized(array))
