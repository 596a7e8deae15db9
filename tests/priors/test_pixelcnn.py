"""PixelCNN++ as a prior: its sums, the way images take into it, gradients, errors; and what tasks make of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fvlight import FvlightError
from fvlight.network import InputSpace
from fvlight.priors import PixelCNN, TotalVariation, identity_of, likelihoods
from fvlight.priors.logistic_mixture import log_likelihood
from fvlight.zoo.pixelcnn import initialise
from fvlight.zoo.pixelcnn_weights import load_pixelcnn
from tests.helpers import relative_error, snapshot

VGG = InputSpace(scale=255.0, mean=(123.68, 116.779, 103.939))


def network(dropout: float = 0.0) -> torch.nn.Module:
    """Float64, with random weights that tell pixels apart."""
    module = load_pixelcnn("random", dropout=dropout).double()
    initialise(module, images_of(8, 3, 8, 8) / 128)
    return module


def images_of(*shape: int, spread: float = 40.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def padded_by_hand(x: Tensor, before: int, after: int) -> Tensor:
    out = torch.zeros(*x.shape[:2], x.shape[2] + before + after, x.shape[3] + before + after, dtype=x.dtype)
    out[:, :, before : before + x.shape[2], before : before + x.shape[3]] = x
    return out


@pytest.mark.parametrize(("side", "before", "after"), [(8, 0, 0), (7, 1, 0), (6, 1, 1), (5, 2, 1)])
def test_images_are_scaled_clipped_and_padded_as_by_the_authors(side: int, before: int, after: int) -> None:
    """pad1 = ceil((D' - D - 0.1) / 2), pad2 = floor((D' - D + 0.1) / 2), x / 128 clipped; the sum is of all of it."""
    larger = math.ceil(side / 4) * 4
    assert (math.ceil((larger - side - 0.1) / 2), math.floor((larger - side + 0.1) / 2)) == (before, after)
    module, images = network(), images_of(3, 3, side, side, spread=100.0)
    assert images.abs().max() > 128
    x = padded_by_hand((images / 128).clamp(-1, 1), before, after)
    with torch.no_grad():
        expected = log_likelihood(module(x), x).sum((1, 2))
        found = PixelCNN(module, VGG)(images)
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize(
    ("space", "scaling"),
    [(InputSpace(), "authors"), (InputSpace(), "photographs"), (VGG, "photographs"),
     (InputSpace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), "photographs")],
)  # fmt: skip
def test_photographs_are_what_the_network_was_trained_on(space: InputSpace, scaling: str) -> None:
    module = network()
    eight_bits = torch.randint(256, (2, 3, 8, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = (eight_bits - 127.5) / 127.5
        expected = log_likelihood(module(x.double()), x.double()).sum((1, 2))
        found = PixelCNN(module, space, scaling=scaling)(space.from_rgb(eight_bits.double() / 255))
    assert relative_error(found, expected) < 1e-5  # a mean or std of its own loses digits


def test_gradients_are_those_of_the_sum_in_parts_or_at_once() -> None:
    """Against autograd through the whole, and differences; each image's likelihood is its own."""
    module, images = network(), images_of(5, 3, 6, 8).requires_grad_()
    outer = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    results = []
    for at_once in (2, 5):
        values = PixelCNN(module, VGG, at_once=at_once)(images)
        results.append((values.detach(), *torch.autograd.grad((outer * values).sum(), images)))
    x = padded_by_hand(images / 128, 1, 1)[:, :, :, 1:-1]
    assert x.shape == (5, 3, 8, 8)
    whole = log_likelihood(module(x), x).sum((1, 2))
    (expected,) = torch.autograd.grad((outer * whole).sum(), images)
    for values, gradient in results:
        assert relative_error(values, whole) < 1e-9
        assert relative_error(gradient, expected) < 1e-9
    prior = PixelCNN(module, VGG)
    assert torch.autograd.gradcheck(prior, images[:1, :, :4, :4].detach().requires_grad_(), atol=1e-4)


def test_the_given_network_stays_as_it_is_and_out_of_the_state() -> None:
    module = network()
    before = snapshot(module)
    prior = PixelCNN(module, VGG, dropout=True)
    prior(images_of(1, 3, 8, 8))
    assert snapshot(module) == before
    assert prior.state_dict() == {}
    assert copy.deepcopy(prior).state_dict() == {}


def test_dropout_is_left_on_when_asked_for() -> None:
    module, images = network(dropout=0.5), images_of(1, 3, 8, 8)
    off, on = PixelCNN(module, VGG), PixelCNN(module, VGG, dropout=True)
    with torch.random.fork_rng():
        assert torch.equal(off(images), off(images))
        assert not torch.equal(on(images), on(images))


def test_it_runs_in_the_narrow_type() -> None:
    module, images = network().float(), images_of(4, 3, 8, 8).float()
    prior = PixelCNN(module, VGG)
    exact, narrow = likelihoods(prior, images), likelihoods(prior, images, torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert 0 < relative_error(narrow, exact) < 0.02
    assert likelihoods(prior, images[None].expand(2, -1, -1, -1, -1)).shape == (2, 4)


def test_priors_are_told_apart() -> None:
    module = network()
    names = {
        identity_of(prior)
        for prior in (
            None, TotalVariation(), PixelCNN(module, VGG, identity="a"), PixelCNN(module, VGG, identity="b"),
            PixelCNN(module, VGG, identity="a", scaling="photographs"),
            PixelCNN(module, VGG, identity="a", dropout=True),
        )
    }  # fmt: skip
    assert len(names) == 6
    assert {"none", "TotalVariation"} < names


def test_what_it_does_not_take() -> None:
    module = network()
    for space in (InputSpace(channels=1), InputSpace(photographic=False)):
        with pytest.raises(FvlightError, match=r"prior=pixelcnn knows RGB photographs.*prior=none"):
            PixelCNN(module, space)
    with pytest.raises(FvlightError, match=r"no prior.scaling 'author': did you mean 'authors'"):
        PixelCNN(module, VGG, scaling="author")
    with pytest.raises(FvlightError, match=r"prior\.at_once=0"):
        PixelCNN(module, VGG, at_once=0)
    with pytest.raises(FvlightError, match="images of 3 x 8 pixels: prior=pixelcnn takes 4 x 4 at least"):
        PixelCNN(module, VGG)(torch.zeros(1, 3, 3, 8))
    strict = PixelCNN(module, VGG, clip=False)
    strict(torch.full((1, 3, 4, 4), 127.9))
    with pytest.raises(FvlightError, match=r"images from -2 to 0 lie outside of the prior's range.*prior\.clip=true"):
        strict(torch.tensor([-256.0, 0.0]).repeat(8).view(1, 1, 4, 4).expand(1, 3, 4, 4))


# -- in tasks --------------------------------------------------------------------------------------------------


class Counting(torch.nn.Module):
    """A prior that counts how often it is asked with a gradient and without."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = {True: 0, False: 0}

    def forward(self, images: Tensor) -> Tensor:
        self.asked[torch.is_grad_enabled()] += 1
        return -images.square().mean((1, 2, 3))


def solved(kind: str, **changes: Any) -> Any:
    import lightning as L

    from fvlight.solvers import Patience
    from fvlight.tasks import DiverseTask, TextureTask
    from fvlight.zoo import load_network

    given = load_network("torchvision/squeezenet1_1", "random")
    common: dict[str, Any] = {"norm": 2.0, "patience": Patience(4), "inner_steps": 2, **changes}
    if kind == "diverse":
        task: Any = DiverseTask(given, "features.0", [1, 5], lambdas=[0, 1], images_per_problem=2, **common)
    else:
        task = TextureTask(given, "features.3.squeeze", [1, 5], **common)
    L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    ).fit(task)  # fmt: skip
    return task.result


@pytest.mark.parametrize(("kind", "shape"), [("diverse", (2, 2, 2)), ("texture", (2,))])
def test_results_tell_the_likelihood_of_each_image(kind: str, shape: tuple[int, ...]) -> None:
    """Also with alpha = 0, where it is asked to be measured: no step asks for it then."""
    for alpha in (0.0, 0.3):
        prior = Counting()
        result = solved(kind, prior=prior, alpha=alpha, measure_prior=True)
        assert (prior.asked[True] > 0) == (alpha > 0)
        assert prior.asked[False] > 0
        assert result.log_likelihood.shape == shape
        images = result.images if kind == "diverse" else result.textures
        torch.testing.assert_close(result.log_likelihood, -images.square().mean((-1, -2, -3)))
        flat = str(result.summary())
        assert ("log_likelihoods" if kind == "diverse" else "log_likelihood") in flat
    prior = Counting()
    assert solved(kind, prior=prior, alpha=0).log_likelihood is None
    assert prior.asked == {True: 0, False: 0}


def test_alpha_weighs_it_against_the_activation() -> None:
    """The score is the mean of the activations, and alpha times the sum of the likelihoods."""
    prior = Counting()
    result = solved("diverse", prior=prior, alpha=0.25)
    likely = result.log_likelihood.sum(2)
    expected = result.activations.mean(2) + torch.tensor(result.lambdas) * result.min_distance + 0.25 * likely
    torch.testing.assert_close(result.score, expected)
