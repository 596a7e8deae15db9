"""Oracles for gradients and their relatives: layers with a forward and a backward written out, without autograd.

A network is a function of `layers` and an image, ``graph(layers, x)``. With `Modules` it is an ordinary module of
torch's layers, whose ReLUs are written in one of `STYLES`; with `Tape` every layer computes by hand and leaves on a
tape how signals come back through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STYLES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "nn.ReLU()": nn.ReLU,
    "nn.ReLU(inplace)": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: F.relu,
    "F.relu(inplace)": lambda: lambda x: F.relu(x, inplace=True),
    "F.relu_": lambda: F.relu_,
    "torch.relu": lambda: torch.relu,
    "torch.relu_": lambda: torch.relu_,
    "x.relu": lambda: lambda x: x.relu(),
    "x.relu_, x kept": lambda: _written_into,
    "clamp": lambda: lambda x: torch.clamp(x, min=0),
    "x.clamp": lambda: lambda x: x.clamp(0.0),
    "x.clamp_": lambda: lambda x: x.clamp_(min=0),
    "clamp_min": lambda: lambda x: torch.clamp_min(x, 0),
    "x.clamp_min_": lambda: lambda x: x.clamp_min_(torch.zeros(())),
    "x.clip": lambda: lambda x: x.clip(min=0),
    "threshold": lambda: lambda x: F.threshold(x, 0, 0, True),
    "nn.Threshold": lambda: nn.Threshold(0, 0),
    "maximum": lambda: lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)),
    "x.maximum, turned": lambda: lambda x: torch.zeros((), dtype=x.dtype).maximum(x),
}
STYLES_6: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "nn.ReLU6": nn.ReLU6,
    "nn.ReLU6(inplace)": lambda: nn.ReLU6(inplace=True),
    "F.relu6": lambda: lambda x: F.relu6(x, inplace=True),
    "hardtanh": lambda: lambda x: F.hardtanh(x, 0, 6),
    "hardtanh_": lambda: lambda x: F.hardtanh_(x, 0, 6),
    "x.clamp": lambda: lambda x: x.clamp(0, 6),
}


def _written_into(x: Tensor) -> Tensor:
    x.relu_()
    return x


class Modules(nn.Module):
    """A network of torch's layers; ``width`` input channels become what each call of a layer asks for."""

    def __init__(self, graph: Callable[..., Any], relu: str = "F.relu", relu6: str = "nn.ReLU6", seed: int = 0) -> None:
        super().__init__()
        self.graph, self.parts = graph, nn.ModuleDict()
        self.rectify, self.rectify6 = STYLES[relu](), STYLES_6[relu6]()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.double()(torch.zeros(1, 3, 16, 16, dtype=torch.float64))  # makes the layers

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(self, x)

    def _part(self, name: str, build: Callable[[], nn.Module]) -> nn.Module:
        if name not in self.parts:
            self.parts[name] = build().double()
        return self.parts[name]

    def conv(self, name: str, x: Tensor, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> Tensor:
        build = lambda: nn.Conv2d(x.shape[1], width, size, stride, size // 2, groups=groups)  # noqa: E731
        return self._part(name, build)(x)

    def norm(self, name: str, x: Tensor) -> Tensor:
        def build() -> nn.Module:
            norm = nn.BatchNorm2d(x.shape[1]).eval()
            for value, low, high in (
                (norm.weight, 0.5, 1.5), (norm.bias, -0.3, 0.3), (norm.running_mean, -0.2, 0.2),
                (norm.running_var, 0.5, 1.5),
            ):  # fmt: skip
                assert value is not None
                nn.init.uniform_(value, low, high)
            return norm

        return self._part(name, build)(x)

    def linear(self, name: str, x: Tensor, width: int) -> Tensor:
        return self._part(name, lambda: nn.Linear(x.shape[1], width))(x)

    def relu(self, x: Tensor) -> Tensor:
        return self.rectify(x)

    def relu6(self, x: Tensor) -> Tensor:
        return self.rectify6(x)

    def maxpool(self, x: Tensor, size: int, stride: int, padding: int = 0) -> Tensor:
        return F.max_pool2d(x, size, stride, padding)

    def avgpool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x += y
        return x

    def cat(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, 1)

    def everywhere(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Tape:
    """The same layers by hand, for one run; ``lower``, ``upper``: the masks at ReLUs. Values are keys into a list."""

    def __init__(self, parts: nn.ModuleDict, lower: bool, upper: bool) -> None:
        self.parts, self.lower, self.upper = parts, lower, upper
        self.values: list[Tensor] = []
        self.back: list[tuple[tuple[int, ...], Callable[[Tensor], tuple[Tensor, ...]]]] = []
        self.calls: dict[str, int] = {}

    def new(self, value: Tensor, origins: tuple[int, ...], back: Callable[[Tensor], tuple[Tensor, ...]]) -> int:
        self.values.append(value)
        self.back.append((origins, back))
        return len(self.values) - 1

    def signals(self, at: int, start: Tensor) -> Tensor:
        """What comes back to the image, the first value, from a signal at another one."""
        waiting = {at: start}
        for index in range(at, 0, -1):
            if index in waiting:
                origins, back = self.back[index]
                for origin, signal in zip(origins, back(waiting.pop(index)), strict=True):
                    waiting[origin] = waiting[origin] + signal if origin in waiting else signal
        return waiting[0]

    def _rectified(self, x: int, high: float) -> int:
        value = self.values[x]

        def back(signal: Tensor) -> tuple[Tensor]:
            if self.lower:
                signal = signal * ((value > 0) & (value < high))
            return (signal * (signal > 0) if self.upper else signal,)

        return self.new(torch.where(value > 0, torch.where(value < high, value, high), 0.0), (x,), back)

    def relu(self, x: int) -> int:
        return self._rectified(x, float("inf"))

    def relu6(self, x: int) -> int:
        return self._rectified(x, 6.0)

    def conv(self, name: str, x: int, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> int:
        part, value = self.parts[name], self.values[x]
        assert isinstance(part, nn.Conv2d)
        (height, wide), pad = value.shape[2:], size // 2
        out = ((height + 2 * pad - size) // stride + 1, (wide + 2 * pad - size) // stride + 1)
        # groups as one convolution with zeros between them
        weight = torch.zeros(width, value.shape[1], size, size, dtype=value.dtype)
        for g in range(groups):
            rows, columns = (slice(g * n // groups, (g + 1) * n // groups) for n in (width, value.shape[1]))
            weight[rows, columns] = part.weight.detach()[rows]
        matrix = weight.flatten(1)
        result = matrix @ F.unfold(value, size, padding=pad, stride=stride) + part.bias.detach()[:, None]

        def back(signal: Tensor) -> tuple[Tensor]:
            return (F.fold(matrix.T @ signal.flatten(2), (height, wide), size, padding=pad, stride=stride),)

        self.calls[name] = self.new(result.unflatten(2, out), (x,), back)
        return self.calls[name]

    def norm(self, name: str, x: int) -> int:
        part = self.parts[name]
        assert isinstance(part, nn.BatchNorm2d)
        factor = (part.weight.detach() / (part.running_var + part.eps).sqrt())[:, None, None]
        value = (self.values[x] - part.running_mean[:, None, None]) * factor + part.bias.detach()[:, None, None]
        self.calls[name] = self.new(value, (x,), lambda signal: (signal * factor,))
        return self.calls[name]

    def linear(self, name: str, x: int, width: int) -> int:
        weight, bias = self.parts[name].weight.detach(), self.parts[name].bias.detach()
        self.calls[name] = self.new(self.values[x] @ weight.T + bias, (x,), lambda signal: (signal @ weight,))
        return self.calls[name]

    def maxpool(self, x: int, size: int, stride: int, padding: int = 0) -> int:
        value = self.values[x]
        rows, channels, height, width = value.shape
        padded = F.pad(value, [padding] * 4, value=-float("inf"))
        out = [(length + 2 * padding - size) // stride + 1 for length in (height, width)]
        result, where = value.new_empty(rows, channels, *out), {}
        for n in range(rows):
            for c in range(channels):
                for i in range(out[0]):
                    for j in range(out[1]):
                        window = padded[n, c, i * stride : i * stride + size, j * stride : j * stride + size]
                        best = int(window.argmax())  # the first of several, as torch does
                        result[n, c, i, j] = window.flatten()[best]
                        where[n, c, i, j] = (i * stride + best // size - padding, j * stride + best % size - padding)

        def back(signal: Tensor) -> tuple[Tensor]:
            total = torch.zeros_like(value)
            for (n, c, i, j), (row, column) in where.items():
                total[n, c, row, column] += signal[n, c, i, j]
            return (total,)

        return self.new(result, (x,), back)

    def avgpool(self, x: int) -> int:
        value = self.values[x]
        result = (value[..., ::2, ::2] + value[..., 1::2, ::2] + value[..., ::2, 1::2] + value[..., 1::2, 1::2]) / 4
        back = lambda signal: (signal.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4,)  # noqa: E731
        return self.new(result, (x,), back)

    def add(self, x: int, y: int) -> int:
        return self.new(self.values[x] + self.values[y], (x, y), lambda signal: (signal, signal))

    def cat(self, *xs: int) -> int:
        widths = [self.values[x].shape[1] for x in xs]
        return self.new(torch.cat([self.values[x] for x in xs], 1), xs, lambda signal: signal.split(widths, 1))

    def everywhere(self, x: int) -> int:
        height, width = self.values[x].shape[2:]

        def back(signal: Tensor) -> tuple[Tensor]:
            return ((signal / (height * width))[:, :, None, None].expand(-1, -1, height, width),)

        return self.new(self.values[x].sum((2, 3)) / (height * width), (x,), back)


def by_graph(network: nn.Module, images: Tensor, unit: int, lower: bool, upper: bool) -> Tensor:
    """Another oracle, for networks of torch's own layers: hooks on the nodes of autograd's graph."""
    images = images.clone().requires_grad_()
    value = network(images * 1)[:, unit].sum()
    nodes, waiting = {value.grad_fn}, [value.grad_fn]
    while waiting:
        following = {node for node, _ in waiting.pop().next_functions if node is not None} - nodes
        nodes |= following
        waiting += following

    def masked(back: tuple[Tensor, ...], signal: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        result = back[0] if lower else signal[0]
        return (result * (signal[0] > 0) if upper else result,)

    for node in nodes:
        if node.name() in ("ReluBackward0", "HardtanhBackward0"):
            node.register_hook(masked)
    (found,) = torch.autograd.grad(value, images)
    return found


def vgg(o: Any, x: Any) -> Any:
    x = o.relu(o.conv("c1", x, 6))
    x = o.maxpool(o.relu(o.conv("c2", x, 6)), 2, 2)
    x = o.relu(o.conv("c3", x, 8))
    x = o.maxpool(o.relu(o.conv("c4", x, 8)), 2, 2)
    return o.linear("out", o.relu(o.linear("hidden", o.everywhere(x), 12)), 5)


def residual(o: Any, x: Any) -> Any:
    x = o.maxpool(o.relu(o.norm("n0", o.conv("c0", x, 6, 5, 2))), 3, 2, 1)
    y = o.relu(o.norm("n1", o.conv("c1", x, 6)))
    x = o.relu(o.add(o.norm("n2", o.conv("c2", y, 6)), x))
    y = o.relu(o.norm("n3", o.conv("c3", x, 8, 3, 2)))
    y = o.norm("n4", o.conv("c4", y, 8))
    x = o.relu(o.add(y, o.norm("n5", o.conv("c5", x, 8, 1, 2))))
    return o.linear("out", o.everywhere(x), 5)


def inception(o: Any, x: Any) -> Any:
    x = o.maxpool(o.relu(o.conv("c0", x, 6, 3, 2)), 3, 2, 1)
    for block in ("a", "b"):
        branches = [
            o.relu(o.conv(f"{block}1", x, 3, 1)),
            o.relu(o.conv(f"{block}3", o.relu(o.conv(f"{block}3r", x, 4, 1)), 4)),
            o.relu(o.conv(f"{block}5", o.relu(o.conv(f"{block}5r", x, 2, 1)), 3, 5)),
            o.relu(o.conv(f"{block}p", o.maxpool(x, 3, 1, 1), 3, 1)),
        ]
        x = o.cat(*branches)
    return o.linear("out", o.everywhere(x), 5)


def densenet(o: Any, x: Any) -> Any:
    x = o.conv("c0", x, 6)
    for block in ("a", "b"):
        for layer in range(3):
            y = o.conv(f"{block}{layer}r", o.relu(o.norm(f"{block}{layer}n", x)), 8, 1)
            x = o.cat(x, o.conv(f"{block}{layer}", o.relu(o.norm(f"{block}{layer}m", y)), 4))
        x = o.avgpool(o.conv(f"{block}t", o.relu(o.norm(f"{block}tn", x)), 8, 1))
    return o.linear("out", o.everywhere(o.relu(o.norm("last", x))), 5)


def mobilenet(o: Any, x: Any) -> Any:
    """Inverted residuals with ReLU6; the factors let many values beyond 6."""
    x = o.relu6(o.norm("n0", o.conv("c0", x, 6, 3, 2)))
    y = o.relu6(o.norm("n1", o.conv("c1", x, 12, 1)))
    y = o.relu6(o.norm("n2", o.conv("c2", y, 12, 3, groups=12)))
    x = o.add(o.norm("n3", o.conv("c3", y, 6, 1)), x)
    return o.linear("out", o.everywhere(o.relu6(o.conv("c4", x, 8, 1))), 5)


GRAPHS = {"vgg": vgg, "residual": residual, "inception": inception, "densenet": densenet}
