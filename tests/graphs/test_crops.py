"""fvlight.graphs.crops against plain indexing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fvlight.graphs.crops import Crop, crop_all

DOUBLE, ALL = torch.float64, slice(None)
PARTS: list[Crop] = [
    (ALL, ALL, slice(1, 4), slice(0, 3)), (ALL, ALL, slice(2, 6), slice(2, 5)), (ALL, ALL, slice(0, 1), slice(4, 5)),
]  # fmt: skip
WHOLE: Crop = (ALL, ALL, ALL, ALL)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gradient_of(parts: tuple[Tensor, ...], x: Tensor, used: list[int]) -> Tensor:
    total = sum((parts[i] * random(*parts[i].shape, seed=i)).sum() for i in used)
    return torch.autograd.grad(total, x)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("parts", [PARTS, [*PARTS, WHOLE], [WHOLE, PARTS[0]], PARTS[:1]])
def test_parts_and_their_gradients(parts: list[Crop], layout: torch.memory_format) -> None:
    x = random(2, 3, 6, 5).contiguous(memory_format=layout).requires_grad_()
    found, expected = crop_all(x, parts), tuple(x[part] for part in parts)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()  # views: nothing is copied
    for used in (list(range(len(parts))), [0], [len(parts) - 1]):
        gradient = gradient_of(crop_all(x, parts), x, used)
        torch.testing.assert_close(gradient, gradient_of(expected, x, used), rtol=1e-14, atol=1e-14)
        assert gradient.is_contiguous(memory_format=layout)


def test_parts_of_a_part() -> None:
    """A view is not dense: its gradient is."""
    x = random(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)[..., 1:7, 2:7].requires_grad_()
    gradient = gradient_of(crop_all(x, PARTS), x, [0, 1, 2])
    torch.testing.assert_close(gradient, gradient_of(tuple(x[part] for part in PARTS), x, [0, 1, 2]))


def test_gradcheck_twice() -> None:
    x = random(1, 2, 6, 5).requires_grad_()

    def function(x: Tensor) -> Tensor:
        a, b, c = crop_all(x, PARTS)
        return (a.square().sum() * b.sin().sum()) + c.exp().sum()

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_no_graph_is_kept_where_no_gradient_is_asked_for() -> None:
    assert not any(part.requires_grad for part in crop_all(random(1, 2, 6, 5), PARTS))
