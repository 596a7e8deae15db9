"""VGG-19 with its real weights: units of conv3_1 become diverse while they stay active."""

import lightning as L
import pytest

from fvlight.solvers import Patience
from fvlight.tasks import DiverseTask
from fvlight.zoo import load_network

pytestmark = pytest.mark.slow


def solve(weights, precision="32-true", **changes):
    settings = {"norm": 2651.66 / 2, "lambdas": [0, 0.64, 1.28, 2.56], "patience": Patience(400, 100)} | changes
    task = DiverseTask(load_network("vgg19_normalised", str(weights)), "conv3_1", [13, 22, 128], **settings)
    L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision=precision,
    ).fit(task)  # fmt: skip
    return task.result


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_units_of_conv3_1_gain_diversity_at_nine_tenths_of_their_activation(vgg_weights, precision):
    result = solve(vgg_weights, precision)
    for u, chosen in enumerate(result.selected):
        assert result.relative_activation[u, chosen] >= 0.9
        assert result.diversity_gain[u, chosen] > 1


def test_with_continuation_distances_rise_with_lambda(vgg_weights):
    result = solve(vgg_weights, continuation="ascending")
    distance = result.min_distance
    assert (distance[:, 1:] >= 0.95 * distance.cummax(1).values[:, :-1]).all()
