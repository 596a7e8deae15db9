"""The layers of a network as a table: what can be asked for, and what each layer sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.graphs.graph import Graph
from fvlight.graphs.operations import Axes, Unsupported
from fvlight.graphs.tracing import trace
from fvlight.network import Network
from fvlight.receptive_field import ReceptiveField, fields, first_unsupported, node_of

SIDES = (64, 128, 224, 299)  # pixels, tried in this order where a network does not say what images it takes
UNKNOWN = "-"


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: the dotted module name; ``relu_1`` is the second call of ``relu``.
        alias: other names of it, such as a paper's; several are separated by ", ".
        kind: the module's class.
        channels: how many units there are to choose from.
        field: the windows of its units; None where they are not known.
        reason: why they are not, or why a unit sees the whole image; else empty.
    """

    name: str
    alias: str
    kind: str
    channels: int
    field: ReceptiveField | None
    reason: str


def layer_table(network: Network) -> list[LayerRow]:
    """All layers that are computed in evaluation mode, in the order in which they are done.

    Modules that are never called (auxiliary classifiers) or that give no tensor are left out. A module that is
    called several times has a row for each call. The network is run once on a black image and traced once; it comes
    back unchanged.

    Raises:
        FvlightError: the network runs on no image of a size that was tried.
    """
    aliases: dict[str, list[str]] = {}
    for alias, path in network.aliases.items():
        aliases.setdefault(path, []).append(alias)
    windows = _windows(network)
    rows = []
    for name, module, shape in _calls(network):
        field, reason, axes = windows(name)
        channels = shape[-1] if _channels_stand_last(network, module, shape, axes) else shape[1]
        rows.append(LayerRow(name, ", ".join(aliases.get(name, [])), type(module).__name__, channels, field, reason))
    return rows


def _channels_stand_last(network: Network, module: nn.Module, shape: Sequence[int], axes: Axes) -> bool:
    """As in tokens (N, tokens, channels), and in maps of some transformers."""
    if len(shape) != 4:
        return len(shape) == 3
    return (axes or network.likely_axes(module)) == (1, 2)


def _windows(network: Network) -> Callable[[str], tuple[ReceptiveField | None, str, Axes]]:
    """From a layer's name to its receptive field, or None, with why, and where height and width stand in its maps."""
    try:
        graph: Graph = trace(network)
    except Unsupported as error:
        reason = str(error)
        return lambda name: (None, reason, None)
    known = fields(graph)

    def window(name: str) -> tuple[ReceptiveField | None, str, Axes]:
        try:
            node = node_of(graph, network, name, name)
        except (Unsupported, FvlightError) as error:
            return None, str(error), None
        axes = graph.axes(node) if node in graph.dynamic else None
        if node in known:
            return known[node], known[node].reason, axes
        return None, first_unsupported(graph, node, known), axes

    return window


def _calls(network: Network) -> list[tuple[str, nn.Module, torch.Size]]:
    """Name, module and shape of the output of each layer, in the order of their outputs."""
    if network.image_size is not None:
        return _run(network, network.image_size)
    for side in SIDES[:-1]:
        try:
            return _run(network, (side, side))
        except FvlightError:
            continue
    return _run(network, (SIDES[-1], SIDES[-1]))


@torch.no_grad()
def _run(network: Network, size: tuple[int, int]) -> list[tuple[str, nn.Module, torch.Size]]:
    """`_calls` on an image of a given size; the module's modes and hooks are put back."""
    parts = {name: part for name, part in network.module.named_modules() if name}
    modes = {part: part.training for part in network.module.modules()}
    found: list[tuple[str, nn.Module, torch.Size]] = []
    calls: Counter[str] = Counter()

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            call, calls[name] = calls[name], calls[name] + 1
            key = f"{name}_{call}" if call else name
            if isinstance(output, Tensor) and output.dim() > 1 and (not call or key not in parts):
                found.append((key, module, output.shape))

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    like = next(network.module.parameters(), torch.zeros(()))
    try:
        images = torch.zeros(1, network.input_space.channels, *size, dtype=like.dtype, device=like.device)
        network.module.eval()(images)
    except Exception as error:  # whatever a model's Python raises on images that it can't take
        raise FvlightError(
            f"the layers of {network.name!r} can't be listed: it does not run on images of {size[0]} x {size[1]} "
            f"pixels ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return found


# -- printing ----------------------------------------------------------------------------------------------


def print_layers(network: Network, rows: Sequence[LayerRow], console: Console | None = None) -> None:
    """Print the table as wide as it needs to be, so that no name is cropped, in a pipe or a narrow terminal.

    What keeps windows from being known is said below the table, each reason once, by its number; so are the layers
    that a weights file had nothing for.
    """
    console = console or Console()
    with_alias = any(row.alias for row in rows)
    table = Table(
        title=Text(f"layers of {network.name}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for heading in ["layer", *(["alias"] if with_alias else []), "kind", "channels", "receptive field", "stride"]:
        table.add_column(heading, justify="right" if heading == "channels" else "left", no_wrap=True)
    reasons = list(dict.fromkeys(row.reason for row in rows if row.reason and row.field is None))
    for row in rows:
        cells = [row.name, *([row.alias] if with_alias else []), row.kind, str(row.channels)]
        cells += _window_cells(row, reasons)
        table.add_row(*(Text(cell) for cell in cells))  # as Text: names in square brackets are no markup
    lines = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    bare = [row.name for row in rows if any(key.rpartition(".")[0] == row.name for key in network.unloaded)]
    if bare:
        named = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
        lines.append(f"no weights were loaded for {named}: no layer that depends on them can be read")
    width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.width = max(console.width, width)
    console.print(table)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _window_cells(row: LayerRow, reasons: Sequence[str]) -> tuple[str, str]:
    """Receptive field and stride in words."""
    if row.field is None:
        number = f" ({reasons.index(row.reason) + 1})" if row.reason else ""
        return f"{UNKNOWN}{number}", UNKNOWN
    if row.field.whole_image:
        return "whole image", UNKNOWN
    return _pair(row.field.size), _pair(row.field.stride)


def _pair(pair: tuple[int, int]) -> str:
    """``3 x 5``, height first."""
    return f"{pair[0]} x {pair[1]}"
