"""The authors' preconditioning, against its formula written out with a full FFT."""

import numpy as np
import pytest
import torch

from fvlight.parameterizations import precondition, spectral_filter


def authors_filter(height, width):
    """F_ij = 1 / max(1, (ty^2 + tx^2)^(1/4)), t_i = min(i, n - i), divided by its mean: loops, NumPy."""
    full = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            ty, tx = min(i, height - i), min(j, width - j)
            full[i, j] = 1 / max(1.0, (ty**2 + tx**2) ** 0.25)
    return full / full.mean()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (5, 8), (7, 7), (1, 3), (32, 9)])
def test_gradient_is_re_ifft2_of_fft2_times_the_filter(height, width):
    images = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(2, 3, height, width, dtype=torch.float64)
    output = precondition(images, spectral_filter(height, width))
    assert torch.equal(output, images)
    (gradient,) = torch.autograd.grad(output, images, incoming)
    expected = np.fft.ifft2(np.fft.fft2(incoming.numpy()) * authors_filter(height, width)).real
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-12)


def test_the_images_themselves_are_not_filtered_and_low_frequencies_gain():
    gain = spectral_filter(16, 16)
    assert gain[0, 0] == gain.max()
    assert gain[8, 8] == gain.min()
