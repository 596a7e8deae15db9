"""Pair averages against a loop."""

from itertools import combinations

import torch

from fvlight.analysis.pairs import pair_averages


def test_all_pairs_averaged_and_brought_to_the_templates_norm():
    images = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    images *= 7 / images.flatten(-3).norm(dim=-1)[..., None, None, None]
    averages = pair_averages(images)
    for problem in range(2):
        for index, (i, j) in enumerate(combinations(range(4), 2)):
            mean = (images[problem, i] + images[problem, j]) / 2
            torch.testing.assert_close(averages[problem, index], mean * 7 / mean.norm())
    assert averages.shape[1] == 6
