"""ONNX: every layer and every kind of program, in onnxruntime and onnx's own evaluator."""

import numpy as np
import pytest
from onnx_laws import (
    IMAGE,
    MATRIX,
    RNG,
    ROWS,
    F,
    evaluate,
    kernel,
    kinds,
    law_outputs,
    needs_onnx,
)

from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import channel_svd
from minicompress.interchange.onnx_file import to_onnx
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, value_shapes
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

NORM = BatchNorm(*(RNG.random((4, 4), np.float32) + F.type(0.5)), epsilon=0.25)


LAYERS = {
    "Conv2D": (Conv2D(kernel(3, 2, 4, 5), kernel(5)), IMAGE),
    "Conv2D, no bias": (Conv2D(kernel(3, 2, 4, 5)), IMAGE),
    "Conv2D, stride": (Conv2D(kernel(3, 2, 4, 5), kernel(5), stride=(2, 1)), IMAGE),
    "Conv2D, dilation": (Conv2D(kernel(2, 3, 4, 5), kernel(5), dilation=(3, 2)), IMAGE),
    "Conv2D, same": (Conv2D(kernel(2, 4, 4, 5), padding="same", stride=2), IMAGE),
    "Conv2D, sides": (Conv2D(kernel(3, 3, 4, 5), padding=((0, 2), (1, 3))), IMAGE),
    "Conv2D, groups": (Conv2D(kernel(3, 3, 2, 6), kernel(6), groups=2), IMAGE),
    "Conv2D, depthwise": (Conv2D(kernel(3, 3, 1, 8), kernel(8), groups=4, padding=1), IMAGE),
    "Dense": (Dense(MATRIX, kernel(5)), ROWS),
    "Dense, no bias": (Dense(MATRIX), ROWS),
    "MaxPool2D": (MaxPool2D(2), IMAGE),
    "MaxPool2D, same": (MaxPool2D((3, 2), (2, 1), "same"), IMAGE - 5),
    "MaxPool2D, sides": (MaxPool2D(3, 2, ((2, 0), (0, 1))), IMAGE - 5),
    "AvgPool2D": (AvgPool2D((2, 3)), IMAGE),
    "AvgPool2D, same": (AvgPool2D(3, 2, "same"), IMAGE),
    "AvgPool2D, padding counts": (
        AvgPool2D(3, 2, ((2, 1), (0, 1)), count_include_pad=True),
        IMAGE,
    ),
    "GlobalAvgPool2D": (GlobalAvgPool2D(), IMAGE),
    "BatchNorm": (NORM, IMAGE),
    "BatchNorm of rows": (NORM, ROWS[:, :4].copy()),
    "BatchNorm of sequences": (NORM, IMAGE[:, 0]),
    "ReLU": (ReLU(), IMAGE),
    "LeakyReLU": (LeakyReLU(0.3), IMAGE),
    "Sigmoid": (Sigmoid(), 8 * IMAGE),
    "Tanh": (Tanh(), 4 * IMAGE),
    "Softmax": (Softmax(), ROWS),
    "Softmax of pixels": (Softmax(), 4 * IMAGE),
    "Flatten": (Flatten(), IMAGE),
    "Dropout": (Dropout(0.5), IMAGE),
    "MaxPool2D, ceil": (MaxPool2D(3, 2, ((1, 0), (0, 1)), ceil_mode=True), IMAGE - 5),
    "MaxPool2D, ceil, wide strides": (MaxPool2D(2, (4, 5), ceil_mode=True), IMAGE - 5),
    "AvgPool2D, ceil": (AvgPool2D(2, ceil_mode=True), IMAGE),
    "AvgPool2D, ceil, padding counts": (
        AvgPool2D(3, 2, ((1, 0), (0, 2)), ceil_mode=True, count_include_pad=True),
        IMAGE,
    ),
    "GlobalAvgPool2D, axes kept": (GlobalAvgPool2D(keep_axes=True), IMAGE),
    "PReLU": (PReLU(np.array([2, -1, 0.5, 0], F)), IMAGE),
    "PReLU of rows": (PReLU(kernel(6)), ROWS),
    "Clip": (Clip(-0.5, 6), 4 * IMAGE),
    "Clip, low": (Clip(low=0.25), IMAGE),
    "Clip, high": (Clip(high=0.25), IMAGE),
    "Clip, no limit": (Clip(), IMAGE),
    "HardSigmoid": (HardSigmoid(), 4 * IMAGE),
    "HardSigmoid, options": (HardSigmoid(-0.25, 1.5), 4 * IMAGE),
    "HardSwish": (HardSwish(), 3 * IMAGE),
    "SiLU": (SiLU(), 8 * IMAGE),
    "Upsample2D": (Upsample2D((2, 3)), IMAGE),
    "ChannelShuffle": (ChannelShuffle(2), np.concatenate((IMAGE, -IMAGE[..., :2]), -1)),
    "LocalResponseNorm": (LocalResponseNorm(3, 0.5, 0.6, 2.0), 4 * IMAGE),
    "ConvTranspose2D": (ConvTranspose2D(kernel(3, 2, 4, 5), kernel(5), stride=(2, 1)), IMAGE),
    "ConvTranspose2D, sides": (
        ConvTranspose2D(
            kernel(3, 3, 4, 5), stride=2, padding=((0, 2), (1, 1)), output_padding=(1, 0)
        ),
        IMAGE,
    ),
    "ConvTranspose2D, same": (
        ConvTranspose2D(kernel(1, 4, 4, 5), kernel(5), stride=3, padding="same"),
        IMAGE,
    ),
    "ConvTranspose2D, dilation": (ConvTranspose2D(kernel(2, 2, 4, 5), dilation=(3, 2)), IMAGE),
    "ConvTranspose2D, groups": (
        ConvTranspose2D(kernel(3, 2, 2, 6), kernel(6), stride=2, groups=2),
        IMAGE,
    ),
    "ConvTranspose2D, depthwise": (ConvTranspose2D(kernel(2, 2, 1, 8), groups=4), IMAGE),
    "ConvTranspose2D, low rank": (
        ConvTranspose2D(channel_svd(kernel(2, 2, 4, 5), rank=1).rep, kernel(5)),
        IMAGE,
    ),
    "ConvTranspose2D, groups of codes": (
        ConvTranspose2D(quantize(kernel(2, 2, 2, 6), num_bits=8, axis=-1).rep, groups=2),
        IMAGE,
    ),
}


@needs_onnx
@pytest.mark.parametrize("opset", [13, 14, 18, 21, 25])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, opset):
    layer, x = LAYERS[name]
    model = Sequential((layer,))
    law_outputs(lambda *a: to_onnx(*a, opset=opset), model, x)


@needs_onnx
def test_normalization_over_an_even_number_of_channels():
    """onnx's evaluator sums the first N channels, and here all are."""
    x = 4 * RNG.standard_normal((4, 5, 6, 4), np.float32)
    law_outputs(to_onnx, Sequential((LocalResponseNorm(2, 0.5),)), x, (evaluate,))


# Programs -----------------------------------------------------------------------------------------

GATE = (GlobalAvgPool2D(keep_axes=True), Conv2D(kernel(1, 1, 4, 4)), Sigmoid())
POINT = Conv2D(kernel(1, 1, 4, 4))

PROGRAMS = {  # and how often channels are moved
    "a shortcut": (Residual(POINT, ReLU()), 2),
    "a shortcut of features": (Sequential((Flatten(), Residual(Dense(kernel(168, 168))))), 0),
    "added to itself": (Network((ReLU(), Add()), ((0,), (1, 1)), (2,)), 0),
    "one value added": (Network((Add(),), ((0,),), (1,)), 0),
    "three values added": (Parallel((ReLU(), Tanh(), ()), Add()), 0),
    "a gate": (Parallel(((), GATE), Multiply()), 2),
    "a gate before the image": (Sequential((POINT, Parallel((GATE, ()), Multiply()))), 2),
    "side by side": (Parallel((POINT, MaxPool2D(1), ()), Concat()), 2),
    "side by side, channels last": (Parallel((ReLU(), ()), Concat()), 0),
    "rows side by side": (Parallel((Flatten(), Flatten()), Concat()), 0),
    "two heads": (
        Network((POINT, ReLU(), GlobalAvgPool2D(), POINT), ((0,), (1,), (2,), (2,)), (3, 2, 4)),
        3,
    ),
    "the input is an output": (Network((Dropout(0.5), ReLU()), ((0,), (1,)), (0, 2, 1)), 0),
    "one image in two outputs": (Network((POINT, Dropout(0.5)), ((0,), (1,)), (2, 1)), 2),
    "read in both layouts": (Network((POINT, Flatten(), POINT), ((0,), (1,), (1,)), (2, 3)), 3),
    "an image of one pixel": (Sequential((GATE[0], Flatten(), Dense(kernel(4, 2)))), 1),
}


@needs_onnx
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    model, moved = PROGRAMS[name]
    proto = law_outputs(to_onnx, model, IMAGE)
    assert kinds(proto).count("Transpose") == moved
    names = [value.name for value in proto.graph.output]
    several = [f"output{i}" for i in range(len(names))]
    assert names == (["output"] if len(names) == 1 else several)
    shapes = [
        tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:]
        for value in proto.graph.output
    ]
    known = value_shapes(model, IMAGE.shape[1:])
    assert shapes == [known[value] for value in model.outputs]


@needs_onnx
def test_channels_are_moved_only_where_they_have_to_be():
    assert kinds(to_onnx(Sequential((ReLU(), Flatten(), Dropout(0.5))), (2, 2, 3))) == [
        "Relu",
        "Flatten",
    ]
    assert kinds(to_onnx(Sequential(()), (2,))) == ["Identity"]
    model = Sequential((Conv2D(kernel(1, 1, 4, 4)), Softmax(), NORM, GlobalAvgPool2D()))
    assert kinds(to_onnx(model, (7, 6, 4))).count("Transpose") == 1
    law_outputs(to_onnx, model, IMAGE)
