"""PixelCNN++'s weights: those that come with fvlight, files of one's own, and OpenAI's TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvlight.errors import FvlightError

from .pixelcnn import PER_MIXTURE, Enlarging, PixelCNN, Shifted
from .weights import load_weights, read_weights, seeded

AVERAGED, PLAIN = "averaged.", "plain."
AVERAGE_OF = "ExponentialMovingAverage"  # what TensorFlow's moving average puts behind a variable's name
SHIPPED = Path(__file__).parent / "trained" / "pixelcnn.safetensors"


def load_pixelcnn(weights: str = "default", *, averaged: bool = True, dropout: float = 0.0, seed: int = 0) -> PixelCNN:
    """PixelCNN++ of whatever size its weights are, in evaluation mode.

    Args:
        weights: ``default`` (they come with fvlight), ``random`` (a small network, for tests), or a file of
            scripts/train.py or `convert_checkpoint`.
        averaged: the average over the training; else the weights of its last step.
        dropout: in training mode.

    Raises:
        FvlightError: no such file, or not the weights of a PixelCNN++.
    """
    if weights == "random":
        return seeded(lambda: PixelCNN(8, 1, 2, dropout), seed).eval()
    path = SHIPPED if weights == "default" else Path(weights).expanduser()
    if not path.is_file():
        remedy = "scripts/train.py experiment=train/pixelcnn makes one; prior.weights takes default, random or a file"
        raise FvlightError(f"no weights of PixelCNN++ at {str(path)!r}: {remedy}")
    tensors, prefix = read_weights(path), AVERAGED if averaged else PLAIN
    chosen = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    if not chosen:
        there = sorted({name.partition(".")[0] for name in tensors})
        raise FvlightError(
            f"weights file {str(path)!r} has nothing under {prefix!r}, only {', '.join(there[:3]) or 'nothing'}: "
            f"set prior.averaged={str(not averaged).lower()}, or make it with scripts/train.py or convert_checkpoint"
        )
    module = _of_the_size_of(chosen, str(path), dropout)
    load_weights(module, {name: value.float() for name, value in chosen.items()}, str(path))
    return module.eval()


def _of_the_size_of(tensors: Mapping[str, Tensor], source: str, dropout: float) -> PixelCNN:
    """A network that the tensors may fit; `load_weights` tells whether they do."""
    try:
        filters, mixtures = len(tensors["first_above.conv.bias"]), len(tensors["last.conv.bias"]) // PER_MIXTURE
    except KeyError as error:
        raise FvlightError(f"weights from {source!r} are not those of a PixelCNN++: no {error}") from error
    parts = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("down.")), default=0)
    return seeded(lambda: PixelCNN(filters, max(1, (parts - 2) // 3), mixtures, dropout), 0)


def convert_checkpoint(variables: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """OpenAI's variables (``pxpp_cifar.ckpt``) as the tensors of a file for `load_pixelcnn`.

    For example ``{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}`` with TensorFlow's
    ``tf.train.load_checkpoint``, then ``safetensors.torch.save_file``.

    Args:
        variables: arrays by name: ``model/conv2d_0/V``, ``…/g``, ``…/b``, ``model/dense_0/V``, …,
            ``model/deconv2d_3/b``, and with ``/ExponentialMovingAverage`` behind them their averages; others (the
            optimizer's) are left out.

    Returns:
        Names that begin with ``averaged.`` and ``plain.``, as far as all of either are there.

    Raises:
        FvlightError: neither is complete, or a shape is wrong; the first variable that is amiss is named.
    """
    try:
        outputs = variables["model/conv2d_0/V"].shape[3]
        dense = [name.split("/")[1] for name in variables if name.startswith("model/dense_") and name.count("/") == 2]
        last = max(int(name.rpartition("_")[2]) for name in dense)
        mixtures = variables[f"model/dense_{last}/V"].shape[1] // PER_MIXTURE
    except (KeyError, IndexError, ValueError) as error:
        some = ", ".join(sorted(variables)[:3])
        raise FvlightError(
            f"a checkpoint with {some or 'nothing'} is not that of PixelCNN++, which has model/conv2d_0/V, "
            "model/dense_0/V, …"
        ) from error
    module = seeded(lambda: PixelCNN(outputs, max(1, (last - 4) // 9), mixtures), 0)
    found: dict[str, Tensor] = {}
    for prefix, suffix in ((AVERAGED, f"/{AVERAGE_OF}"), (PLAIN, "")):
        if f"model/conv2d_0/V{suffix}" in variables:
            found |= {prefix + name: value for name, value in _converted(module, variables, suffix).items()}
    return found


def _converted(module: PixelCNN, variables: Mapping[str, NDArray[np.float32]], suffix: str) -> dict[str, Tensor]:
    """The module's own tensors from the variables with that suffix, which are numbered in the order of its layers."""
    counts = {"conv2d": 0, "dense": 0, "deconv2d": 0}
    shapes, found = module.state_dict(), {}
    for layer, part in module.convolutions:
        kind = _kind(part)
        for ours, theirs in {"parametrizations.weight.original1": "V", "parametrizations.weight.original0": "g",
                             "bias": "b"}.items():  # fmt: skip
            name, key = f"model/{kind}_{counts[kind]}/{theirs}{suffix}", f"{layer}.conv.{ours}"
            if name not in variables:
                raise FvlightError(f"the checkpoint has no {name}: it is no PixelCNN++ of {module.filters} filters")
            value, shape = torch.from_numpy(np.array(variables[name], dtype=np.float32)), shapes[key].shape
            if theirs == "V":  # rows, columns and channels, those coming in and going out as in ours
                value = value[None, None] if kind == "dense" else value
                value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value
            elif value.dim() == 1 and value.numel() == shape.numel():
                value = value.reshape(shape)
            if value.shape != shape:
                raise FvlightError(
                    f"{name} of the checkpoint has shape {tuple(variables[name].shape)}, which does not fit "
                    f"{tuple(shape)} of a PixelCNN++ with {module.filters} filters"
                )
            found[key] = value.contiguous()
        counts[kind] += 1
    return found


def _kind(part: Shifted | Enlarging) -> str:
    """What the authors' code calls such a layer: 1 × 1 convolutions are matrix products."""
    if isinstance(part, Enlarging):
        return "deconv2d"
    return "dense" if part.pads == (0, 0, 0, 0) else "conv2d"
