"""Every classification network of torchvision and every model of timm, by their own names.

Both libraries together take as long to import as torch: each is imported where one of its networks is asked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fvlight.errors import FvlightError, unknown
from fvlight.network import InputSpace, Network

from .weights import PICKLES, load_weights, read_weights, seeded, weights_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
# Both were trained on images in [-1, 1]. torchvision's published versions take images normalised by ImageNet's mean and
# std and turn them back channel by channel (transform_input). Without that step, and with mean = std = 0.5 in the
# input space, the function of a photograph is the same, and norms of images are those of what the network sees.
# The auxiliary classifiers work in training only. init_weights=True: what torchvision does, with a warning, unasked.
INCEPTION = {"transform_input": False, "aux_logits": False, "init_weights": True}
OPTIONS: dict[str, dict[str, Any]] = {"googlenet": INCEPTION, "inception_v3": INCEPTION}
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Families of timm that keep (N, height, width, channels) between their blocks without saying so in `output_fmt`.
CHANNELS_LAST = ("GlobalContextVit", "SwinTransformerV2Cr", "VisionTransformerSAM", "VOLO")


def library_names(library: str, *, tags: bool = False) -> list[str]:
    """All names of one library, with its prefix.

    Args:
        tags: also timm's names with a tag, which chooses one of several published weights (``resnet50.a1_in1k``).
    """
    if library == "torchvision":
        import torchvision

        models = torchvision.models.list_models(module=torchvision.models)
    else:
        import timm

        models = timm.list_models()
        models += [name for name in timm.list_models(include_tags=True) if tags and "." in name]
    return [f"{library}/{model}" for model in models]


# --- torchvision ----------------------------------------------------------------------------------------


def torchvision_network(name: str, *, weights: str, seed: int, **options: Any) -> Network:
    """A torchvision classification network.

    Args:
        name: torchvision's.
        weights: ``default`` (see `published_weights`), ``random`` (torchvision's initialisation), or a file.
        **options: of torchvision's builder; ``image_size`` of its vision transformers, for instance.
    """
    import torchvision

    full = f"torchvision/{name}"
    if full not in library_names("torchvision"):
        raise unknown("network", full, library_names("torchvision"), "torchvision")
    published = torchvision.models.get_model_weights(name).DEFAULT
    options = OPTIONS.get(name, {}) | options
    if weights == "default" and name.startswith("vit_"):
        options.setdefault("image_size", published.meta["min_size"][0])
    module = seeded(lambda: torchvision.models.get_model(name, weights=None, **options), seed).eval()
    unloaded: frozenset[str] = frozenset()
    if weights != "random":
        tensors = published_weights(name) if weights == "default" else read_weights(weights)
        unloaded = load_weights(module, _own_names(tensors, module), weights, partial=weights != "default")
    preprocessing = published.transforms()
    mean, std = tuple(preprocessing.mean), tuple(preprocessing.std)
    if name in OPTIONS and not options["transform_input"]:
        mean = std = (0.5, 0.5, 0.5)
    size = (preprocessing.crop_size[0],) * 2
    if isinstance(module, torchvision.models.VisionTransformer):
        size = (module.image_size,) * 2
    elif isinstance(module, torchvision.models.MaxVit):
        size = tuple(options.get("input_size", size))
    return Network(
        module,
        full,
        InputSpace(3, 1.0, mean, std),
        paper_names(module),
        size,
        fixed_size=isinstance(module, torchvision.models.VisionTransformer | torchvision.models.MaxVit),
        channels_last=isinstance(module, torchvision.models.SwinTransformer),
        unloaded=unloaded,
    )


def published_weights(name: str) -> dict[str, Tensor]:
    """torchvision's best weights of a network.

    They are looked for in the folder ``torchvision`` of `weights_folder`, then in torch.hub's cache, and are
    downloaded into that otherwise.

    Raises:
        FvlightError: no connection, or what came is not what was published.
    """
    import torchvision

    published = torchvision.models.get_model_weights(name).DEFAULT
    file_name = PurePosixPath(urlparse(published.url).path).name
    ours, cache = weights_folder() / "torchvision" / file_name, Path(torch.hub.get_dir()) / "checkpoints" / file_name
    for path in (ours, cache):
        if path.is_file():
            return read_weights(path)
    try:
        return published.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, HTTPException, RuntimeError, UnpicklingError) as error:  # a wrong hash is a RuntimeError
        raise _not_downloaded(f"torchvision/{name}", file_name, published.url, ours, error) from error


def _not_downloaded(network: str, file_name: str, origin: str, path: Path, error: Exception) -> FvlightError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, UnpicklingError):  # torch's text recommends to load the file unsafely
        reason = "what came holds more than tensors"
    return FvlightError(
        f"the weights of {network!r} can't be downloaded ({reason}): put {file_name} from {origin} at {path}, "
        "or give network.weights=FILE or network.weights=random"
    )


def _own_names(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Published tensors by the names of torchvision's modules, which changed since, without auxiliary classifiers."""
    if type(module).__name__ == "DenseNet":  # norm.1 was renamed norm1, as torchvision's loader does it
        pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
        return {pattern.sub(r"\1\2", key): value for key, value in tensors.items()}
    have = module.state_dict()
    return {key: value for key, value in tensors.items() if key in have or not key.startswith(AUXILIARY)}


# --- timm -----------------------------------------------------------------------------------------------


def timm_network(name: str, *, weights: str, seed: int, **options: Any) -> Network:
    """A timm model.

    Args:
        name: timm's, with or without the tag of its weights (``resnet50.a1_in1k``); old names, too.
        weights: ``default`` (the published weights; adapted by timm to options such as ``in_chans``), ``random``
            (timm's initialisation), or a file with the module's own names.
        **options: of ``timm.create_model``.
    """
    import timm
    from timm.data import resolve_input_data_config
    from timm.models import get_deprecated_models, get_model_input_config

    current = get_deprecated_models().get(name) or name
    if f"timm/{current}" not in library_names("timm", tags=True):
        raise unknown("network", f"timm/{name}", library_names("timm", tags="." in name), "timm")
    unloaded: frozenset[str] = frozenset()
    if weights == "default":
        module = _pretrained(current, seed, options)
        unloaded = _new_classifier(module)
    else:
        module = seeded(lambda: timm.create_model(current, pretrained=False, **options), seed)
        if weights != "random":
            unloaded = load_weights(module, read_weights(weights), weights, partial=True)
    config = resolve_input_data_config(module)
    channels, *size = config["input_size"]
    # Of other images than photographs timm knows no range: their mean and std are an average of those of RGB.
    space = InputSpace(channels, 1.0, config["mean"], config["std"], photographic=channels in (1, 3))
    last = getattr(module, "output_fmt", None) == "NHWC" or type(module).__name__ in CHANNELS_LAST
    return Network(
        module.eval(),
        f"timm/{name}",
        space,
        paper_names(module),
        (size[0], size[1]),
        fixed_size=get_model_input_config(module)["fixed_input_size"],
        channels_last=last,
        unloaded=unloaded,
    )


def _pretrained(name: str, seed: int, options: dict[str, Any]) -> nn.Module:
    """A timm model with its published weights, from the folder ``timm`` of `weights_folder` or timm's own cache."""
    import timm

    published = timm.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise FvlightError(
            f"no weights of 'timm/{name}' are published: give network.weights=FILE or network.weights=random"
        )
    tagged = f"{published.architecture}.{published.tag}" if published.tag else published.architecture
    folder = weights_folder() / "timm"
    files = [folder / f"{stem}{suffix}" for stem in (name, tagged) for suffix in (".safetensors", *PICKLES)]
    path = next((str(file) for file in files if file.is_file()), None)
    overlay = {"file": path} if path else None
    try:
        return seeded(lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options), seed)
    except (OSError, HTTPException, RuntimeError, SafetensorError) as error:
        if path:
            reason = " ".join(str(error).split())[:200]
            raise FvlightError(f"weights file {path!r} does not fit 'timm/{name}' ({reason})") from error
        if not isinstance(error, OSError | HTTPException):
            raise
        if published.hf_hub_id:
            file_name, origin = published.hf_hub_filename or "model.safetensors", f"hf.co/{published.hf_hub_id}"
        else:
            origin = str(published.url)
            file_name = PurePosixPath(urlparse(origin).path).name
        suffix = ".pth" if file_name.endswith((".pth", ".tar", ".bin")) else ".safetensors"
        raise _not_downloaded(f"timm/{name}", file_name, origin, folder / f"{tagged}{suffix}", error) from error


def _new_classifier(module: nn.Module) -> frozenset[str]:
    """The classifier's parameters where it has other classes than the published one: timm leaves them random."""
    config = getattr(module, "pretrained_cfg", {})
    if getattr(module, "num_classes", None) in (None, config.get("num_classes")):
        return frozenset()
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return frozenset(key for key in module.state_dict() if key.startswith(tuple(f"{name}." for name in classifiers)))


# --- names of the papers --------------------------------------------------------------------------------


def paper_names(module: nn.Module) -> dict[str, str]:
    """Names that the papers use for layers of VGG and ResNet; none for other networks.

    VGG [Simonyan & Zisserman 2015]: ``conv1_1``, ``bn1_1``, ``relu1_1``, …, ``pool5``. ResNets with bottlenecks [He et
    al. 2015]: ``conv2_3`` is the 3 × 3 convolution of the third block of stage conv2_x, at which Cadena et al. 2018
    look.
    """
    if type(module).__name__ == "VGG":  # torchvision's and timm's
        return _vgg_names(module.features)  # type: ignore[arg-type]
    names = {}
    for stage in range(1, 5):
        blocks = getattr(module, f"layer{stage}", None)
        for number, block in enumerate(blocks if isinstance(blocks, nn.Sequential) else (), 1):
            if hasattr(block, "conv3") and isinstance(getattr(block, "conv2", None), nn.Conv2d):
                names[f"conv{stage + 1}_{number}"] = f"layer{stage}.{number - 1}.conv2"
    return names


def _vgg_names(features: nn.Sequential) -> dict[str, str]:
    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    names, block, number = {}, 1, 0
    for index, part in features.named_children():
        kind = next((short for sort, short in kinds.items() if isinstance(part, sort)), None)
        number += kind == "conv"
        if kind == "pool":
            names[f"pool{block}"] = f"features.{index}"
            block, number = block + 1, 0
        elif kind:
            names[f"{kind}{block}_{number}"] = f"features.{index}"
    return names


LIBRARIES: dict[str, Callable[..., Network]] = {"torchvision": torchvision_network, "timm": timm_network}
