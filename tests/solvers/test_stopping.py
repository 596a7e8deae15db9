"""The authors' stopping rule, against a plain loop over one problem."""

import numpy as np
import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.solvers import Patience


def plain_stop(losses, patience, decay=0.9):
    """The step at which the rule stops a single problem, or None."""
    average, best, since = losses[0], np.inf, 0
    for step, loss in enumerate(losses):
        average = loss if step == 0 else decay * average + (1 - decay) * loss
        if average < best:
            best, since = average, 0
        else:
            since += 1
        if since > patience:
            return step
    return None


def test_every_problem_stops_when_a_loop_over_it_alone_would():
    rng = np.random.default_rng(0)
    steps = np.arange(300)
    slopes = np.linspace(0.001, 0.3, 20)[:, None]
    losses = np.exp(-slopes * steps) + 0.3 * rng.normal(size=(20, 300)) * slopes
    rule = Patience(max_steps=300, patience=12)
    state, stopped = rule.start(20), [None] * 20
    moving = torch.ones(20, dtype=torch.bool)
    for t in range(300):
        weary = rule.update(state, torch.tensor(losses[:, t]), moving)
        for problem in (weary & moving).nonzero()[:, 0].tolist():
            stopped[problem] = t
        moving &= ~weary
    expected = [plain_stop(row, 12) for row in losses]
    assert stopped == expected
    assert len(set(expected)) > 5  # the problems differ


@pytest.mark.parametrize(("name", "value"), [("max_steps", 0), ("patience", 0), ("decay", 5.0), ("decay", -0.1)])
def test_constants_that_make_no_sense_are_named(name, value):
    with pytest.raises(FvlightError, match=rf"solver\.{name}={value}"):
        Patience(**{name: value})
