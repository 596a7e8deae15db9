"""Total variation against loops, its gradient by closed form."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.priors import TotalVariation


@pytest.mark.parametrize("power", [1, 2, 1.5])
def test_total_variation_is_the_sum_over_neighbours(power):
    images = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    expected = []
    for image in images:
        total = 0.0
        for plane in image:
            for y in range(3):
                for x in range(4):
                    total += abs(float(plane[y, x] - plane[y + 1, x])) ** power if y < 2 else 0
                    total += abs(float(plane[y, x] - plane[y, x + 1])) ** power if x < 3 else 0
        expected.append(-total)
    torch.testing.assert_close(TotalVariation(power)(images), torch.tensor(expected, dtype=torch.float64))


def test_the_gradient_of_squares_is_twice_the_laplacian():
    """With the factor 2 that FeatureVis's code lacks; 2 (number of neighbours x - their sum), by loops."""
    images = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(-TotalVariation(2)(images).sum(), images)
    expected = torch.zeros_like(gradient)
    for c in range(2):
        for y in range(4):
            for x in range(5):
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= v < 4 and 0 <= u < 5:
                        expected[0, c, y, x] += 2 * (images[0, c, y, x] - images[0, c, v, u]).detach()
    torch.testing.assert_close(gradient, expected)


def test_a_power_below_one_is_refused():
    with pytest.raises(FvlightError, match=r"power=0\.5"):
        TotalVariation(0.5)
