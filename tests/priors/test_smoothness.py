"""Total variation against loops."""

import torch

from fvlight.priors import TotalVariation


def test_total_variation_is_the_sum_over_neighbours():
    images = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    expected = []
    for image in images:
        total = 0.0
        for plane in image:
            for y in range(3):
                for x in range(4):
                    total += abs(float(plane[y, x] - plane[y + 1, x])) if y < 2 else 0
                    total += abs(float(plane[y, x] - plane[y, x + 1])) if x < 3 else 0
        expected.append(-total)
    torch.testing.assert_close(TotalVariation()(images), torch.tensor(expected, dtype=torch.float64))
