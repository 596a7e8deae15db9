"""Aggregations against plain loops."""

import itertools

import pytest
import torch

from fvlight.aggregation import AGGREGATIONS, Aggregation
from fvlight.errors import FvlightError

MAPS = torch.randn(2, 5, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LOGITS = MAPS[:, :, 0, 0]


def plain(maps, name, size, stride):
    """A loop over images, features and windows."""
    height, width = maps.shape[2:]
    response = torch.zeros(maps.shape[:2], dtype=maps.dtype)
    for image, feature in itertools.product(*map(range, maps.shape[:2])):
        rows = maps[image, feature].tolist()
        if name == "max_mean":
            corners = itertools.product(range(0, height - size + 1, stride), range(0, width - size + 1, stride))
            values = [max(v for row in rows[y : y + size] for v in row[x : x + size]) for y, x in corners]
        elif name == "mean":
            values = [v for row in rows for v in row]
        else:
            values = [rows[height // 2][width // 2]]
        response[image, feature] = sum(values) / len(values)
    return response


@pytest.mark.parametrize("name", ["max_mean", "mean", "center"])
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2), (1, 1), (6, 5), (2, 3)])
def test_maps_are_aggregated_as_by_a_plain_loop(name, size, stride):
    torch.testing.assert_close(Aggregation(name, size, stride)(MAPS), plain(MAPS, name, size, stride))


def test_the_default_pools_three_by_three_with_stride_two():
    torch.testing.assert_close(Aggregation()(MAPS), plain(MAPS, "max_mean", 3, 2))


def test_logits_stay_as_they_are():
    assert torch.equal(Aggregation("identity")(LOGITS), LOGITS)
    assert torch.equal(Aggregation("identity")(LOGITS[:, :, None, None]), LOGITS)
    assert torch.equal(Aggregation("identity", features=[3, 0])(LOGITS), LOGITS[:, [3, 0]])


@pytest.mark.parametrize(("features", "numbers"), [(2, [0, 1]), (5, [0, 1, 2, 3, 4]), ([4, 0, 1], [4, 0, 1])])
@pytest.mark.parametrize("name", ["max_mean", "mean", "center"])
def test_features_are_chosen_by_number_or_by_name(name, features, numbers):
    whole, chosen = Aggregation(name)(MAPS), Aggregation(name, features=features)(MAPS)
    assert torch.equal(chosen, whole[:, numbers])


@pytest.mark.parametrize("features", [None, [3, 0]])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_batched_gradients_are_those_taken_one_by_one(name, features):
    """Jacobians are taken by vectorised backward passes; a missing batching rule would be a warning, an error here."""
    value = (LOGITS if name == "identity" else MAPS).clone().requires_grad_()
    response = Aggregation(name, features=features)(value)
    grads = torch.eye(response.numel(), dtype=torch.float64).reshape(-1, *response.shape)
    (batched,) = torch.autograd.grad(response, value, grads, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(response, value, g, retain_graph=True)[0] for g in grads]
    torch.testing.assert_close(batched, torch.stack(single))
    torch.testing.assert_close(
        torch.func.vmap(lambda v: Aggregation(name)(v[None])[0])(value), Aggregation(name)(value)
    )


def test_an_aggregation_is_known_by_its_settings():
    """Runs are compared by these texts when one is resumed."""
    assert str(Aggregation(features=[0, 1])) == str(Aggregation(features=(0, 1)))
    assert str(Aggregation(size=2)) != str(Aggregation(size=3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "maxmean"}, "no aggregation 'maxmean': did you mean 'max_mean'"),
        ({"size": 0}, "size=0, stride=2"),
        ({"stride": -1}, "size=3, stride=-1"),
        ({"features": 0}, "features=0"),
        ({"features": []}, r"features=\[\]"),
        ({"features": [1, 2, 1]}, r"features=\[1, 2, 1\].*none of them twice"),
        ({"features": [-1]}, r"features=\[-1\]"),
    ],
)
def test_impossible_settings_are_named(settings, words):
    with pytest.raises(FvlightError, match=words):
        Aggregation(**settings)


@pytest.mark.parametrize(
    ("settings", "value", "words"),
    [
        ({"size": 7}, MAPS, "size=7 on a map of 7 x 6 positions"),
        ({"name": "identity"}, MAPS, "identity on a map of 7 x 6 positions: take max_mean"),
        ({}, LOGITS, "max_mean on a layer without positions: take identity"),
        ({"name": "center"}, LOGITS, "center on a layer without positions: take identity"),
        ({"features": 6}, MAPS, "features=6: the layer has 5"),
        ({"features": [0, 5]}, MAPS, "feature 5 of features: the layer has 0 to 4"),
        ({}, MAPS[:, :, 0], r"shape \(2, 5, 6\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(settings, value, words):
    with pytest.raises(FvlightError, match=words):
        Aggregation(**settings)(value)
