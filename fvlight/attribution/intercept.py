"""Rules in place of operations while a network runs, whoever calls them: modules, functions, methods, operators.

A rule is about an operation (``relu``), not about a module (``nn.ReLU``): networks that call ``F.relu`` or
``x.relu_()`` are treated like those that have a module for it. No module is changed and nothing is hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

Rule = Callable[..., Any]  # gets the operation and its arguments: rule(operation, *args, **kwargs)


class Intercept(TorchFunctionMode):
    """While active, ``rules[operation](operation, *args, **kwargs)`` stands for ``operation(*args, **kwargs)``.

    Inside a rule operations are plain ones. A rule that returns ``NotImplemented`` leaves the operation as it is.
    In-place operations: the rule gets a copy to read (and may save it for the way back) and returns a new tensor; its
    numbers and its gradient are then those of the tensor that the caller handed over, as the caller expects.

    Args:
        rules: by the function as torch calls it: `torch.nn.functional.relu`, `torch.Tensor.relu_`, … ``x += y``
            arrives as `torch.Tensor.add_`.
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
        if not in_place(func, args, kwargs):
            result = rule(func, *args, **kwargs)
        else:
            target: Tensor = args[0] if args else kwargs["input"]
            others = {name: value for name, value in kwargs.items() if name != "input"}
            if "inplace" in others:
                others["inplace"] = False
            result = rule(func, target.clone(), *args[1:], **others)
            result = result if result is NotImplemented else target.copy_(result)
        if result is NotImplemented:
            return func(*args, **kwargs)
        self.count += 1
        return result


def in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Does this call write into its first argument?"""
    name = str(getattr(func, "__name__", ""))
    return bool(kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
