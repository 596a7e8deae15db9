"""Operations replaced while a network runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.attribution.intercept import Intercept, in_place


def doubled(_: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands for a ReLU in these tests: 2 x², which saves its input."""
    return 2 * x.square()


def test_an_operation_is_replaced_whoever_calls_it():
    x = torch.tensor([-1.0, 3.0])
    with Intercept({F.relu: doubled, torch.sigmoid: doubled}) as active:
        for result in (F.relu(x), nn.ReLU()(x), nn.Sigmoid()(x), torch.sigmoid(x)):
            assert result.tolist() == [2, 18]
        assert torch.relu(x).tolist() == [0, 3]  # another one
    assert active.count == 4
    assert F.relu(x).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        (torch.Tensor.relu_, lambda x: x.relu_()),
        (torch.relu_, lambda x: torch.relu_(x)),
        (torch.relu_, lambda x: F.relu_(input=x)),
        (F.relu, lambda x: F.relu(x, inplace=True)),
        (F.relu, nn.ReLU(inplace=True)),
    ],
)
def test_writing_in_place_gives_the_caller_its_tensor_with_the_rules_numbers_and_gradient(operation, call):
    x = torch.tensor([-1.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = 5 * x
    view = y[:1]
    with Intercept({operation: doubled}) as active:
        assert call(y) is y
    assert active.count == 1
    assert y.tolist() == [50, 450]
    assert view.item() == 50
    (slope,) = torch.autograd.grad(y.sum(), x)  # 2 (5 x)²: the value before is still there for the way back
    assert slope.tolist() == [-100, 300]


@pytest.mark.parametrize("sign", ["+", "-", "*", "/"])
def test_augmented_assignments_arrive_as_methods(sign):
    method = {"+": "add_", "-": "sub_", "*": "mul_", "/": "div_"}[sign]

    def rule(_: Any, x: Tensor, y: Any) -> Tensor:
        return 10 * x + y

    names = {"x": torch.tensor([-1.0, 3.0]), "y": torch.tensor([4.0, 5.0])}
    before = names["x"]
    with Intercept({getattr(torch.Tensor, method): rule}) as active:
        exec(f"x {sign}= y", {}, names)
    assert active.count == 1
    assert names["x"] is before
    assert before.tolist() == [-6, 35]


def test_operations_inside_a_rule_are_plain():
    def rule(operation: Any, x: Tensor, inplace: bool) -> Tensor:
        assert not inplace
        return operation(x, inplace=inplace) + torch.relu(-x) + F.relu(x)

    with Intercept({F.relu: rule, torch.relu: doubled}) as active:
        assert F.relu(torch.tensor([-1.0, 3.0]), inplace=True).tolist() == [1, 6]
    assert active.count == 1


@pytest.mark.parametrize("inplace", [False, True])
def test_a_rule_may_leave_an_operation_as_it_is(inplace):
    x = torch.tensor([-1.0, 3.0])
    with Intercept({F.relu: lambda *args, **kwargs: NotImplemented}) as active:
        result = F.relu(x, inplace=inplace)
    assert result.tolist() == [0, 3]
    assert (result is x) == inplace
    assert active.count == 0


def test_the_rule_for_all_others_sees_every_one_and_none_that_has_its_own():
    seen: Counter[str] = Counter()

    def note(operation: Any, *args: Any, **kwargs: Any) -> Any:
        seen[operation.__name__] += 1
        return operation(*args, **kwargs)

    network, images = (
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        torch.ones(1, 3, 4, 4),
    )
    with Intercept({F.relu: doubled}, other=note) as active:
        network(images)
    assert seen == {"conv2d": 1, "max_pool2d": 1, "flatten": 1}
    assert active.count == 1


def test_an_error_in_a_rule_ends_the_interception():
    def rule(*_: Any, **__: Any) -> Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), Intercept({torch.relu: rule}):
        torch.relu(torch.ones(1))
    assert torch.relu(torch.ones(1)).item() == 1


@pytest.mark.parametrize(
    ("operation", "keywords", "writes"),
    [
        (torch.relu_, {}, True), (torch.Tensor.add_, {}, True), (torch.Tensor.clamp_, {}, True),
        (F.hardtanh_, {}, True),
        (F.relu, {"inplace": True}, True), (F.relu, {"inplace": False}, False), (torch.relu, {}, False),
        (torch.Tensor.__add__, {}, False), (torch.Tensor.__getitem__, {}, False), (torch.Tensor.add, {}, False),
    ],
)  # fmt: skip
def test_what_writes_in_place(operation, keywords, writes):
    assert in_place(operation, (), keywords) == writes
