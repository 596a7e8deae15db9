"""Layers of a module that can't be traced, read with forward hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.network import split_call


class _Enough(Exception):
    """All wanted layers have been read: the rest of the network need not run."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, its weights without gradients; afterwards it is as it was."""
    modes = {m: m.training for m in module.modules()}
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        for weight in learning:
            weight.requires_grad_(False)
        module.eval()
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for weight in learning:
            weight.requires_grad_(True)


def read_with_hooks(module: nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    """Full maps of the layers from an untraceable module, in evaluation mode, leaving nothing behind."""
    found: dict[str, Tensor] = {}
    modules = dict(module.named_modules())
    calls = {name: split_call(name, modules) for name in names}
    count: Counter[str] = Counter()

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call, count[path] = count[path], count[path] + 1
            for name in (name for name, wanted in calls.items() if wanted == (path, call)):
                if not isinstance(output, Tensor):
                    raise FvlightError(
                        f"layer {name!r} gives a {type(output).__name__}, not a tensor: read a layer inside it"
                    )
                found[name] = output.clone()  # a later in-place operation can't reach the copy
            if len(found) == len(calls):
                raise _Enough

        return hook

    handles = [modules[path].register_forward_hook(keep(path)) for path in {path for path, _ in calls.values()}]
    try:
        with evaluating(module):
            module(images)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in found:
            raise FvlightError(f"layer {name!r} is not called when {type(module).__name__} runs: it can't be read")
    return [found[name] for name in names]
