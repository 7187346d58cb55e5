"""How alike two images are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8


def psnr(reference: UInt8[np.ndarray, "*b h w c"], image: UInt8[np.ndarray, "*b h w c"]) -> Float[np.ndarray, "*b"]:
    """Peak signal-to-noise ratio of each image in dB, peak 255; infinite where the images are equal."""
    _check(reference, image)
    error = np.mean((reference.astype(np.float64) - image) ** 2, axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def ssim(reference: UInt8[np.ndarray, "*b h w c"], image: UInt8[np.ndarray, "*b h w c"]) -> Float[np.ndarray, "*b"]:
    """Structural similarity of each image, -1..1, averaged over channels and over all full windows.

    Wang et al. 2004 (IEEE TIP 13, 600): Gaussian window of 11x11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03,
    peak 255. Images are at least 11 pixels high and wide.
    """
    from scipy.ndimage import gaussian_filter

    _check(reference, image)
    if min(reference.shape[-3:-1]) < 11:
        raise ValueError(f"SSIM needs images of at least 11x11 pixels, got shape {reference.shape}")

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=1.5, radius=5, axes=(-3, -2))

    x, y = reference.astype(np.float64), image.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return np.mean(similar[..., 5:-5, 5:-5, :], axis=(-3, -2, -1))


def _check(reference: np.ndarray, image: np.ndarray) -> None:
    if reference.shape != image.shape or reference.dtype != np.uint8 or image.dtype != np.uint8:
        found = f"{reference.dtype} {reference.shape} and {image.dtype} {image.shape}"
        raise ValueError(f"need two uint8 arrays of one shape, got {found}")
