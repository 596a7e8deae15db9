"""The bound on values against plain numbers."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.priors import Lp


@pytest.mark.parametrize("power", [2, 6, 3.5])
def test_values_and_gradients_are_the_formulas(power):
    images = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    found = Lp(power)(images)
    expected = [-sum(abs(v) ** power for v in image.flatten().tolist()) for image in images]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(-found.sum(), images)
    x = images.detach().numpy()
    closed = power * (x > 0) * abs(x) ** (power - 1) - power * (x < 0) * abs(x) ** (power - 1)
    torch.testing.assert_close(gradient, torch.from_numpy(closed))


def test_the_default_is_six_and_a_power_below_one_is_refused():
    assert float(Lp()(torch.full((1, 1, 1, 1), 2.0))) == -64
    with pytest.raises(FvlightError, match=r"power=0\.5"):
        Lp(0.5)
