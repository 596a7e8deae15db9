"""Rules in place of operations while a network runs, whoever calls them: modules, functions, methods, operators.

A rule is about an operation (``relu``), not about a module (``nn.ReLU``): networks that call ``F.relu`` or
``x.relu_()`` are treated like those that have a module for it. No module is changed and nothing is hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

IN_PLACE = ("__iadd__", "__isub__", "__imul__", "__itruediv__")
Rule = Callable[..., Any]  # gets the operation and its arguments: rule(operation, *args, **kwargs)


class Intercept(TorchFunctionMode):
    """While active, ``rules[operation](operation, *args, **kwargs)`` stands for ``operation(*args, **kwargs)``.

    Inside a rule operations are plain ones. In-place operations: the rule returns a new tensor, and its numbers and
    its gradient are then those of the tensor that the caller handed over, as the caller expects.

    Args:
        rules: by the function as torch calls it: `torch.nn.functional.relu`, `torch.Tensor.relu_`, …
        other: for operations without a rule; None: they stay as they are.

    Attributes:
        count: how many operations were replaced.
    """

    def __init__(self, rules: Mapping[Callable[..., Any], Rule], other: Rule | None = None) -> None:
        super().__init__()
        self.rules, self.other, self.count = rules, other, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = self.rules.get(func, None)
        if rule is None:
            return func(*args, **kwargs) if self.other is None else self.other(func, *args, **kwargs)
        self.count += 1
        if not in_place(func, args, kwargs):
            return rule(func, *args, **kwargs)
        target: Tensor = args[0] if args else kwargs["input"]
        return target.copy_(rule(func, *args, **{**kwargs, **({"inplace": False} if "inplace" in kwargs else {})}))


def in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Does this call write into its first argument?"""
    if kwargs.get("inplace"):
        return True
    name = str(getattr(func, "__name__", ""))
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
