"""The encoders' networks and the merge model in PyTorch, with random weights.

The encoders go up to their last grid of features.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from captioning.config import Config
from captioning.encoders import BUNDLED
from captioning.steps import CLIP_NORM
from captioning.vocabulary import PAD

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


class MergeDecoder(nn.Module):
    """`captioning.model.MergeDecoder`: the same layers, in one pass over the captions."""

    def __init__(self, config: Config, words: int, shape: tuple[int, ...], embedding: int):
        super().__init__()
        units, channels, self.heads = config.units, shape[-1], config.heads
        self.embedding, self.dropout = nn.Embedding(words, embedding), nn.Dropout(config.dropout)
        self.rnn = nn.GRU(embedding, units, batch_first=True)
        self.image_norm, self.merge_norm = nn.LayerNorm(channels), nn.LayerNorm(units)
        self.image_dropout = nn.Dropout1d(config.dropout) if len(shape) == 2 else self.dropout
        self.image, self.word = nn.Linear(channels, units), nn.Linear(units, units)
        self.scores, self.grid = nn.Linear(units, words), None
        if len(shape) == 2:
            self.grid, self.key, self.value = (
                nn.Linear(size, units) for size in (channels, units, units)
            )
            self.query, self.gate, self.context = (nn.Linear(units, units) for _ in range(3))

    def forward(self, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Features (I, C) or (I, P, C), captions (I, K, T) -> the mean loss per word."""
        images, captions, length = words[:, :, :-1].shape
        vectors = self.dropout(self.embedding(words[:, :, :-1].flatten(0, 1)))
        outputs = self.dropout(self.rnn(vectors)[0]).reshape(images, captions * length, -1)
        features = self.image_norm(features)
        if self.grid is None:
            merged = self.word(outputs) + self.image(self.image_dropout(features))[:, None]
        else:
            features = self.image_dropout(features.transpose(1, 2)).transpose(1, 2)  # channels
            grid = torch.relu(self.grid(features))
            query, key, value = (
                layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for layer, x in ((self.query, outputs), (self.key, grid), (self.value, grid))
            )
            context = functional.scaled_dot_product_attention(query, key, value)
            context = self.gate(outputs).sigmoid() * context.transpose(1, 2).flatten(2)
            merged = self.word(outputs) + self.image(features.mean(1))[:, None]
            merged = merged + self.context(context)
        merged = self.dropout(self.merge_norm(torch.relu(merged))).flatten(0, 1)
        targets = words[:, :, 1:].flatten()
        real = targets != PAD
        scores = self.scores(merged[real])
        return functional.cross_entropy(scores, targets[real], label_smoothing=0.1)


def training_step(model: MergeDecoder):
    """A step with fused AdamW: NumPy features and captions -> the loss, the number of words.

    In float32: on processors without bfloat16 units PyTorch's GRU is many times slower in it.
    """
    adam = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0, fused=True)

    def step(features: np.ndarray, words: np.ndarray) -> tuple[float, int]:
        loss = model(torch.from_numpy(features).float(), torch.from_numpy(words).long())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        adam.step()
        return loss.item(), int((words[:, :, 1:] != PAD).sum())

    return step
