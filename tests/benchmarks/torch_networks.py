"""The encoders' networks in PyTorch, with random weights, up to their last grid of features."""

import torch
from torch import nn

from captioning.encoders import BUNDLED

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # of ResNet50: width, blocks, stride
EXPANSION = 4  # of a block's width, in what it gives


def network(name: str) -> nn.Module:
    """The network of the encoder `name`: (batch, 3, size, size) -> (batch, C, rows, columns).

    Raises:
        ImportError: the package that holds it is not installed; see requirements.txt here.
        ValueError: there is none for that encoder.
    """
    if name == BUNDLED:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite2").eval().extract_features
    if name == "resnet50":
        return resnet50().eval()
    raise ValueError(f"{name}: no network in PyTorch; expected {BUNDLED} or resnet50")


def resnet50() -> nn.Module:
    """ResNet50 as keras.applications has it, that is as He et al. 2016 describe it: a block that
    halves the grid does so in its first convolution.
    """
    parts = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for number in range(blocks):
            parts.append(_Block(channels, width, stride if number == 0 else 1))
            channels = EXPANSION * width
    return nn.Sequential(*parts)


def _convolution(channels: int, filters: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """A convolution and the normalisation after it."""
    return nn.Conv2d(channels, filters, size, stride, size // 2), nn.BatchNorm2d(filters)


class _Block(nn.Module):
    """Three convolutions beside a short cut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(channels, width, 1, stride),
            nn.ReLU(),
            *_convolution(width, width, 3),
            nn.ReLU(),
            *_convolution(width, EXPANSION * width, 1),
        )
        self.short_cut = nn.Identity()
        if stride > 1 or channels != EXPANSION * width:
            self.short_cut = nn.Sequential(*_convolution(channels, EXPANSION * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + self.short_cut(x))
