"""A small convolutional network for handwritten digits, trained from scratch: NumPy and convjit.

    python tests/tutorials/train_digits.py

The network is conv 3x3 (16) - relu - conv 3x3 (32) - relu - max pool 2x2 - linear (10).  The
convolutions' gradients are ``conv_input_grad`` and ``conv_weight_grad``; everything else of the
backward pass is a line of NumPy.  The digits are scikit-learn's, 8x8 pixels, 1797 of them; a fifth
is kept for the test.  The exit status is 1 below 97 % of the test digits.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import convjit

Array = NDArray[np.float32]
WANTED = 0.97


def digits(rng: np.random.Generator) -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Training images (N, 1, 8, 8) and labels, then test images and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = rng.permutation(len(data.target))
    images = (data.images[order, None] / 16 - 0.3).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    cut = len(labels) // 5
    return images[cut:], labels[cut:], images[:cut], labels[:cut]


class Conv:
    """A convolution with a bias; ``backward`` needs the input that ``forward`` saw."""

    def __init__(self, rng: np.random.Generator, c: int, k: int, size: int = 3) -> None:
        scale = np.sqrt(2 / (c * size * size))  # He et al. 2015: keeps the variance through a relu
        self.w = (scale * rng.standard_normal((k, c, size, size))).astype(np.float32)
        self.b = np.zeros(k, np.float32)

    def parameters(self) -> list[Array]:
        return [self.w, self.b]

    def forward(self, x: Array) -> Array:
        self.x = x
        self.y: Array = convjit.conv(x, self.w, self.b, padding="same", activation="relu")
        return self.y

    def backward(self, gy: Array) -> tuple[Array, list[Array]]:
        gy = np.where(self.y > 0, gy, np.float32(0))  # the relu in the epilogue
        gx = convjit.conv_input_grad(self.x.shape, self.w, gy, padding="same")
        gw = convjit.conv_weight_grad(self.x, self.w.shape, gy, padding="same")
        return gx, [gw, gy.sum((0, 2, 3))]


class MaxPool:
    """The largest of each 2x2 block."""

    def parameters(self) -> list[Array]:
        return []

    def forward(self, x: Array) -> Array:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
        y: Array = blocks.max((3, 5))
        first = blocks == y[:, :, :, None, :, None]
        self.mask = first / first.sum((3, 5), keepdims=True, dtype=np.float32)
        return y

    def backward(self, gy: Array) -> tuple[Array, list[Array]]:
        n, c, h, w = gy.shape
        gx = self.mask * gy[:, :, :, None, :, None]
        return gx.reshape(n, c, 2 * h, 2 * w), []


class Linear:
    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        self.w = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        self.b = np.zeros(outputs, np.float32)

    def parameters(self) -> list[Array]:
        return [self.w, self.b]

    def forward(self, x: Array) -> Array:
        self.x = x
        return x.reshape(len(x), -1) @ self.w + self.b

    def backward(self, gy: Array) -> tuple[Array, list[Array]]:
        gx = (gy @ self.w.T).reshape(self.x.shape)
        return gx, [self.x.reshape(len(gy), -1).T @ gy, gy.sum(0)]


Layer = Conv | MaxPool | Linear


@dataclass
class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    parameters: list[Array]
    rate: float
    step: int = 0

    def __post_init__(self) -> None:
        self.mean = [np.zeros_like(p) for p in self.parameters]
        self.square = [np.zeros_like(p) for p in self.parameters]

    def update(self, gradients: list[Array]) -> None:
        self.step += 1
        rate = self.rate * np.sqrt(1 - 0.999**self.step) / (1 - 0.9**self.step)
        for p, g, m, v in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= (rate * m / (np.sqrt(v) + 1e-8)).astype(np.float32)


def forward(network: list[Layer], x: Array) -> Array:
    for layer in network:
        x = layer.forward(x)
    return x


def gradients(
    network: list[Layer], x: Array, labels: NDArray[np.int64]
) -> tuple[float, list[Array]]:
    """Mean cross-entropy of a batch, and its gradient by every parameter."""
    logits = forward(network, x)
    logits = logits - logits.max(1, keepdims=True)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = np.arange(len(labels)), labels
    loss = -float(np.log(probability[chosen]).mean())
    gy = probability.copy()
    gy[chosen] -= 1
    gy /= np.float32(len(labels))
    found: list[Array] = []
    for layer in reversed(network):
        gy, of_layer = layer.backward(gy)
        found = of_layer + found
    return loss, found


def accuracy(network: list[Layer], x: Array, labels: NDArray[np.int64]) -> float:
    return float((forward(network, x).argmax(1) == labels).mean())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a small CNN on digits with convjit.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(options.seed)
    x, labels, test_x, test_labels = digits(rng)
    network: list[Layer] = [Conv(rng, 1, 16), Conv(rng, 16, 32), MaxPool(), Linear(rng, 512, 10)]
    adam = Adam([p for layer in network for p in layer.parameters()], options.rate)
    print(f"{sum(p.size for p in adam.parameters)} parameters, {len(x)} digits to learn from")
    batches = len(x) // options.batch
    for epoch in range(options.epochs):
        order = rng.permutation(len(x))
        adam.rate = options.rate * (1 - epoch / options.epochs)
        losses = []
        for chosen in np.array_split(order, batches):
            loss, found = gradients(network, x[chosen], labels[chosen])
            adam.update(found)
            losses.append(loss)
        print(
            f"epoch {epoch + 1:2d}  loss {np.mean(losses):.4f}  "
            f"test {accuracy(network, test_x, test_labels):.2%}",
            flush=True,
        )
    reached = accuracy(network, test_x, test_labels)
    if reached < WANTED:
        print(f"{reached:.2%} of the test digits, {WANTED:.0%} wanted", file=sys.stderr)
        return 1
    print(f"{reached:.2%} of {len(test_labels)} test digits are read correctly")
    return 0


if __name__ == "__main__":
    sys.exit(main())
