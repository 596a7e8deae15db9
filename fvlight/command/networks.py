"""The command's networks: configurations for those of libraries, lists of names and of layers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fvlight.errors import FvlightError, did_you_mean, unknown

LIBRARIES = ("torchvision", "timm")
LIBRARY_CONFIG = "library_network.yaml"  # of every network of a library
LIST_LAYERS, LIST_NETWORKS = "--list-layers", "--list-networks"


def conf_folder() -> Path:
    """Where the files of the configuration are."""
    import fvlight.conf

    return Path(fvlight.conf.__path__[0])


def add_library_networks(arguments: Sequence[str]) -> None:
    """Give Hydra a configuration for each network of a library that is asked for by name, also in a sweep.

    Raises:
        FvlightError: the library has no such network.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for name in _asked(arguments):
        library, _, model = name.partition("/")
        _check(library, name)
        node = OmegaConf.load(conf_folder() / LIBRARY_CONFIG)
        node.name = name
        # a group of its own for each library: Hydra finds no node whose own name has a slash
        ConfigStore.instance().store(model, node, group=f"network/{library}", provider="fvlight")


def _asked(arguments: Sequence[str]) -> list[str]:
    """The networks of libraries among ``network=...`` and in the files of ``experiment=...``."""
    places = [text for text in arguments if text.startswith("network=")]
    for text in arguments:
        file = conf_folder() / "experiment" / f"{text.partition('=')[2]}.yaml"
        if text.startswith("experiment=") and file.is_file():
            places += [line for line in file.read_text(encoding="utf-8").splitlines() if "/network:" in line]
    return re.findall(rf"\b(?:{'|'.join(LIBRARIES)})/[\w.-]+", "\n".join(places))


def _check(library: str, name: str) -> None:
    from timm.models import get_deprecated_models

    from fvlight.zoo.libraries import library_names

    if library == "timm" and name.partition("/")[2] in get_deprecated_models():
        return
    names = library_names(library, tags="." in name)
    if name not in names:
        raise unknown("network", name, names, library)


def networks_like(name: str, ours: Sequence[str]) -> str:
    """For an error: those of libraries with just this name and ours that contain it, else ours with one like it."""
    from fvlight.zoo import list_networks

    meant = [known for known in list_networks("*/*") if known.partition("/")[2] == name]
    meant += [known for known in ours if name in known]
    if meant:
        return f"did you mean {' or '.join(map(repr, meant))}?"
    return did_you_mean(name, [*ours, *(f"{library}/NAME" for library in LIBRARIES)])


def print_networks(patterns: Sequence[str]) -> int:
    """``--list-networks``: our own and how many more there are, or those that match a pattern."""
    from fvlight.zoo import list_networks

    if len(patterns) > 1:
        raise FvlightError(f"{LIST_NETWORKS} {shlex.join(patterns)}: takes one pattern, such as 'timm/*resnet*'")
    names = list_networks(*patterns)
    if not names:
        raise FvlightError(f"no network matches {patterns[0]!r}: patterns are those of a shell, as in 'timm/*resnet*'")
    if not patterns:
        counts = {f"{library}/*": len(list_networks(f"{library}/*")) for library in LIBRARIES}
        names += [
            f"{key[:-1]}NAME ({count} networks: fvlight {LIST_NETWORKS} '{key}')" for key, count in counts.items()
        ]
    Console().print(Text("\n".join(names)), soft_wrap=True)  # unlike `print` it takes `| head` for what it is
    return 0


def print_layer_table(arguments: Sequence[str], config_name: str) -> int:
    """``--list-layers``: the layers of the configuration's network; nothing is run, nothing is written."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    for text in arguments:
        if text.startswith("-"):
            raise FvlightError(f"{text}: {LIST_LAYERS} takes settings alone, as in network=torchvision/vgg19")
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        config = compose(config_name, overrides=list(arguments))
        chosen: Any = OmegaConf.to_container(config.network, resolve=True)

    from fvlight.application import network_to_list  # after the composition, whose errors come sooner this way
    from fvlight.layers import layer_table, print_layers

    network = network_to_list({"network": chosen})
    print_layers(network, layer_table(network))
    return 0
