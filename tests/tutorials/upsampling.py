"""Upsampling an image by two in three ways, with pictures that show where checkerboards come from.

    python tests/tutorials/upsampling.py [--output upsampling.png]

A layer that doubles the size of an image gives each output pixel a number of taps.  Where that
number differs between neighbours, random weights (as they are before training) print a checkerboard
onto a smooth image (Odena, Dumoulin and Olah 2016, "Deconvolution and Checkerboard Artifacts"):

* transposed convolution, stride 2, kernel 3: an output pixel is covered by 1, 2 or 4 taps;
* pixel shuffle (Shi et al. 2016): one convolution makes four channels that become the four pixels
  of each 2x2 block: four kernels that know nothing of each other;
* resize, then convolve: every output pixel sees the same kernel over a smooth image: no
  checkerboard.

The checkerboard of a picture is measured as the share of its variance that is inside 2x2 blocks:
the energy of the detail coefficients of one level of the Haar transform.
The exit status is 1 if the first two do not show it, or the third does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import convjit

Array = NDArray[np.float32]
SIZE = 64


def picture() -> Array:
    """A smooth scene, (1, 1, SIZE, SIZE) in [0, 1]: a lit ball over a gradient."""
    v, u = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    ball = np.clip(1 - (u**2 + v**2) / 0.5, 0, 1) ** 0.5
    light = np.clip(ball + 0.35 * u * ball - 0.35 * v * ball, 0, 1)
    image = np.where(ball > 0, 0.15 + 0.8 * light, 0.45 - 0.2 * v)
    smooth = np.array([1, 4, 6, 4, 1], np.float32) / 16
    blurred: Array = convjit.conv(
        image.astype(np.float32), np.outer(smooth, smooth), padding="same", pad_mode="replicate"
    )
    return blurred[None, None]


def kernels(rng: np.random.Generator, count: int, size: int) -> Array:
    """``count`` positive kernels of a layer that has not learnt yet, each with mean sum 1."""
    w = rng.uniform(0.2, 1.8, (count, 1, size, size)) / size**2
    return w.astype(np.float32)


def transposed(x: Array, w: Array) -> Array:
    """Each input pixel stamps the kernel; stamps overlap unevenly when 2 does not divide its size.

    A stamp adds to every second pixel only, so that a quarter of the sum of w reaches each on
    average: the factor 4 keeps the brightness.
    """
    y: Array = convjit.conv_transpose(4 * x, w, stride=2, padding=1, output_padding=1)
    return y


def resized(x: Array, w: Array) -> Array:
    """Bilinear resize, a transposed convolution with an even kernel, then the convolution."""
    tent = np.array([1, 3, 3, 1], np.float32) / 4
    # pad_mode in the transposed direction folds the border back, which is the adjoint of padding,
    # not padding: continue the image by one pixel first and cut the result.
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    double = convjit.conv_transpose(wide, np.outer(tent, tent)[None, None], stride=2, padding=3)
    y: Array = convjit.conv(double, w, padding="same", pad_mode="replicate")
    return y


def shuffled(x: Array, w: Array) -> Array:
    """Four channels at low resolution become the 2x2 blocks of one at high resolution."""
    y = convjit.conv(x, w, padding="same", pad_mode="replicate")
    n, c, height, width = y.shape
    blocks = y.reshape(n, c // 4, 2, 2, height, width)
    return np.ascontiguousarray(blocks.transpose(0, 1, 4, 2, 5, 3)).reshape(
        n, c // 4, 2 * height, 2 * width
    )


def checkerboard(image: Array) -> float:
    """Energy of the detail inside 2x2 blocks, as a share of the variance (0: none)."""
    inner = image[0, 0, 8:-8, 8:-8].astype(np.float64)
    height, width = inner.shape
    blocks = inner.reshape(height // 2, 2, width // 2, 2)
    detail = blocks - blocks.mean((1, 3), keepdims=True)
    return float((detail**2).mean() / inner.var())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Upsampling in three ways, with pictures.")
    parser.add_argument("--output", type=Path, default=Path("upsampling.png"))
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(4)
    x = picture()
    w = kernels(rng, 1, 3)
    results = {
        "transposed, kernel 3": transposed(x, w),
        "pixel shuffle": shuffled(x, kernels(rng, 4, 3)),
        "resize, then conv": resized(x, w),
    }
    shares = {name: checkerboard(image) for name, image in results.items()}
    for name, share in shares.items():
        print(f"{name:22s} {results[name].shape[2:]}  checkerboard {share:8.3%}")

    draw(x, results, shares, options.output)
    print(f"pictures in {options.output}")
    smooth = shares.pop("resize, then conv")
    if not all(share > 5 * smooth for share in shares.values()):
        print("the checkerboards are not where they were expected", file=sys.stderr)
        return 1
    return 0


def draw(x: Array, results: dict[str, Array], shares: dict[str, float], path: Path) -> None:
    """The input, the three results, and an enlarged corner of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(11, 5.8), layout="constrained")
    images = {f"input, {SIZE}x{SIZE}": x, **results}
    for column, (name, image) in enumerate(images.items()):
        whole = image[0, 0]
        start, length = (3 * n // 8 for n in whole.shape), len(whole) // 5
        top, left = start
        part = whole[top : top + length, left : left + length]
        for axis, shown in ((axes[0, column], whole), (axes[1, column], part)):
            axis.imshow(shown, cmap="gray", interpolation="nearest")
            axis.set_axis_off()
        axes[0, column].set_title(name)
        if name in shares:
            axes[1, column].set_title(f"checkerboard {shares[name]:.2%}", fontsize="medium")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
