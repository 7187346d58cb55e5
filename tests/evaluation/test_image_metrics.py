import numpy as np
import pytest

from wamjax.evaluation.image_metrics import psnr, ssim


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """A picture of 24x32 pixels and a disturbed one."""
    y, x = np.mgrid[:24, :32]
    first = np.stack([x * 7 + y, 255 - x * 5 - y * 2, (x * y) % 256], -1).astype(np.uint8)
    change = ((x * 3 + y * 5) % 41 - 20)[..., None] * np.array([1, -1, 2])
    return first, np.clip(first.astype(int) + change, 0, 255).astype(np.uint8)


def test_psnr_known_values() -> None:
    black, grey = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 16, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(black, black + 255) == pytest.approx(0.0)
    assert psnr(grey, grey) == np.inf


def test_agree_with_scikit_image() -> None:
    # structural_similarity(a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, data_range=255,
    # use_sample_covariance=False) and peak_signal_noise_ratio(a, b, data_range=255) of scikit-image 0.26.0
    first, second = pictures()
    assert ssim(first, second) == pytest.approx(0.6963183179486414, abs=1e-9)
    assert psnr(first, second) == pytest.approx(24.065335276895382, abs=1e-9)


def test_each_image_of_a_batch_has_its_own_value() -> None:
    first, second = pictures()
    batch, others = np.stack([first, second])[:, None], np.stack([second, second])[:, None]
    for metric in (psnr, ssim):
        values = metric(batch, others)
        assert values.shape == (2, 1)
        assert values[0, 0] == pytest.approx(float(metric(first, second)))
    assert ssim(first, first) == pytest.approx(1.0)


def test_images_that_cannot_be_compared_are_refused() -> None:
    first, second = pictures()
    with pytest.raises(ValueError, match="two uint8 arrays of one shape"):
        psnr(first, second[:-1])
    with pytest.raises(ValueError, match="two uint8 arrays of one shape"):
        ssim(first / 255, second / 255)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(first[:10], second[:10])
