"""Networks of other projects: a class that the user names, with the weights of one of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fvlight.errors import FvlightError, unknown
from fvlight.network import InputSpace, Network
from fvlight.trusted import trusted_class

from .weights import load_weights, read_weights, seeded

NAME = "lightning_checkpoint"
INPUT_KEYS = ("size", "channels", "scale", "mean", "std", "photographic")
MOST_NAMED = 6  # prefixes in an error


def network_from_checkpoint(
    *, weights: str | None = None, seed: int = 0, target: str | None = None, prefix: str = "",
    arguments: Mapping[str, Any] | None = None, input: Mapping[str, Any] | None = None, trusted: Iterable[str] = (),
) -> Network:  # fmt: skip
    """Build a class and load a checkpoint of it: Lightning's (``.ckpt``), a state_dict (``.pt``), or safetensors.

    Nothing in the file is run: it is read with ``weights_only=True``. All weights must fit.

    Args:
        weights: the file, or ``random``.
        seed: of random weights.
        target: ``package.module.Class``, an ``nn.Module``; its package must be one of ``trusted``.
        prefix: what stands before the names of the network's weights in the file: ``"model."`` where a LightningModule
            keeps the network as ``self.model``. Other weights of the file are left out.
        arguments: of the class.
        input: ``size`` (a number or height and width), ``channels``, ``scale``, ``mean``, ``std``, ``photographic``:
            see `Network` and `InputSpace`.

    Raises:
        FvlightError: the class is not trusted, does not exist or can't be built so; the file can't be read safely; its
            weights do not fit, with those that are missing or too many.
    """
    if not target:
        raise FvlightError(f"network={NAME}: give network.target=package.module.Class, a class derived from nn.Module")
    if weights in (None, "default"):
        raise FvlightError(f"network={NAME}: give network.checkpoint=FILE, or network.weights=random")
    kind, given = _class(target, trusted), dict(arguments or {})
    try:
        module = seeded(lambda: kind(**given), seed).eval()
    except Exception as error:  # whatever the class raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FvlightError(
            f"network.target={target} can't be built with network.arguments={given}: {reason}"
        ) from error
    if weights != "random":
        load_weights(module, _without_prefix(read_weights(str(weights)), prefix, str(weights)), str(weights))
    space, size = _input(input or {})
    return Network(module, kind.__name__, space, image_size=size)


def _class(target: str, trusted: Iterable[str]) -> type[nn.Module]:
    try:
        return trusted_class(target, nn.Module, trusted)
    except FvlightError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise FvlightError(f"{error}: install the package, or add its folder to PYTHONPATH") from error
        raise


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for known in (prefix, prefix.removeprefix("module.")):  # which `read_weights` takes off
        found = found or {name.removeprefix(known): value for name, value in tensors.items() if name.startswith(known)}
    if not found:
        there = sorted({f"{name.partition('.')[0]}." for name in tensors if "." in name})
        shown = ", ".join(there[:MOST_NAMED]) + (", …" if len(there) > MOST_NAMED else "")
        raise FvlightError(f"network.prefix={prefix}: no weight in {source!r} is named so; they begin with {shown}")
    return found


def _input(given: Mapping[str, Any]) -> tuple[InputSpace, tuple[int, int] | None]:
    for key in given:
        if key not in INPUT_KEYS:
            raise unknown("key", key, INPUT_KEYS, "network.input")
    size, rest = given.get("size"), {key: value for key, value in given.items() if key != "size"}
    channels = int(rest.get("channels", 3))
    for key in ("mean", "std"):
        values = rest.get(key)
        if values is None:
            continue
        rest[key] = tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),)
        if len(rest[key]) not in (1, channels):
            raise FvlightError(f"network.input.{key}={values}: one number, or one for each of {channels} channels")
    pair = [size, size] if isinstance(size, int) else list(size) if size is not None else [1, 1]
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise FvlightError(f"network.input.size={size}: a number of pixels, or [height, width]")
    return InputSpace(**rest), None if size is None else (pair[0], pair[1])
