"""The encoders' networks in PyTorch, with random weights, up to their last grid of features."""

import torch
from torch import nn

from captioning.encoders import BUNDLED

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # of ResNet50: width, blocks, stride


def network(name: str):
    """The network of the encoder `name`: (batch, 3, size, size) -> (batch, C, rows, columns)."""
    if name == BUNDLED:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite2").eval().extract_features
    return resnet50().eval()


def resnet50() -> nn.Module:
    """ResNet50 (He et al. 2016) as in keras.applications: a block strides in its first layer."""
    parts = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for number in range(blocks):
            parts.append(_Block(channels, width, stride if number == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*parts)


def _convolution(channels: int, filters: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution and its batch normalisation."""
    return [nn.Conv2d(channels, filters, size, stride, size // 2), nn.BatchNorm2d(filters)]


class _Block(nn.Module):
    """Three convolutions beside a short cut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        first, second = _convolution(channels, width, 1, stride), _convolution(width, width, 3)
        last = _convolution(width, 4 * width, 1)
        self.branch = nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU(), *last)
        same = channels == 4 * width
        self.short_cut = nn.Sequential(
            *([] if same else _convolution(channels, 4 * width, 1, stride))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + self.short_cut(x))
