"""What SRNet is trained and tested on: renderings of isosurfaces at two resolutions, from random views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.results import write_atomically
from fvlight.tasks.identity import seed_of

from ..isosurface import View, geometry_image, random_view
from ..scalar_fields import ScalarField, Volume, draw_field
from ..srnet import RENDERED

FACTOR = 4  # between the resolutions
IMAGES = (64, 128)  # pixels a side of a view at the low resolution; the authors: 128
FILLED = 0.5  # least share of a crop that the surface fills, theirs too
PER_VIEW = 4  # crops of a view, at most
TRIES = 20  # of places in a view
MIDDLE = (0.25, 0.75)  # where in the bulk of a field's values isovalues are drawn
SYNTHETIC = ("gyroid", "metaballs", "noise")


@dataclass(frozen=True)
class Scene:
    """A surface and a view of it."""

    field: ScalarField
    isovalue: float
    view: View


def draw_scene(sources: Sequence[Volume | str], isovalue: float | None, seed: int) -> Scene:
    """One of the sources (volumes, or names of fields), an isovalue unless it is given, and a view."""
    generator = torch.Generator().manual_seed(seed)
    source = sources[int(torch.randint(len(sources), (), generator=generator))]
    field = draw_field(source, generator) if isinstance(source, str) else source
    low, high = field.bulk
    share = MIDDLE[0] + (MIDDLE[1] - MIDDLE[0]) * float(torch.rand((), generator=generator))
    chosen = low + share * (high - low) if isovalue is None else isovalue
    field.require_surface(chosen)
    return Scene(field, chosen, random_view(generator))


def render(scene: Scene, size: int) -> tuple[Tensor, Tensor]:
    """(5, size, size) as a network gets it and (6, 4 size, 4 size), the truth; both from rays of their own."""
    low = geometry_image(scene.field, scene.isovalue, scene.view, size, occlusion=False)
    return low[:RENDERED], geometry_image(scene.field, scene.isovalue, scene.view, FACTOR * size)


def crops_of(scene: Scene, crop: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Up to `PER_VIEW` crops (5, crop, crop) and (6, 4 crop, 4 crop) that the surface fills by half."""
    generator = torch.Generator().manual_seed(seed)
    size = IMAGES[int(torch.randint(len(IMAGES), (), generator=generator))]
    low = geometry_image(scene.field, scene.isovalue, scene.view, size, occlusion=False)[:RENDERED]
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(TRIES):
        top, left = torch.randint(size - crop + 1, (2,), generator=generator).tolist()
        part = low[:, top : top + crop, left : left + crop]
        if (part[0] > 0).float().mean() >= FILLED and len(found) < PER_VIEW:
            window = (FACTOR * top, FACTOR * left, FACTOR * crop, FACTOR * crop)
            found.append((part, geometry_image(scene.field, scene.isovalue, scene.view, FACTOR * size, window)))
    return found


def draw_crops(
    sources: Sequence[Volume | str], count: int, crop: int, isovalue: float | None, seed: int
) -> tuple[Tensor, Tensor]:
    """``count`` crops (count, 5, crop, crop) and (count, 6, 4 crop, 4 crop), with 16 bits.

    Raises:
        FvlightError: a volume has no surface at the isovalue, or too little of one to fill crops.
    """
    low = torch.empty(count, RENDERED, crop, crop, dtype=torch.half)
    high = torch.empty(count, 6, FACTOR * crop, FACTOR * crop, dtype=torch.half)
    done = views = 0
    bar = iter(track(range(count), "rendering", console=Console(stderr=True), transient=True))
    while done < count:
        scene = draw_scene(sources, isovalue, seed_of(seed, "view", views))
        for small, large in crops_of(scene, crop, seed_of(seed, "crops", views))[: count - done]:
            low[done], high[done] = small.half(), large.half()
            done += 1
            next(bar, None)
        views += 1
        if views > 20 + 10 * done:
            raise FvlightError(
                f"only {done} crops out of {views} views are at least half filled by a surface: take another isovalue, "
                "or smaller crops"
            )
    next(bar, None)
    return low, high


def cached_crops(path: Path, **arguments: object) -> tuple[Tensor, Tensor]:
    """`draw_crops`, or what it left in the file."""
    if path.is_file():
        try:
            tensors = load_file(path)
            return tensors["low"], tensors["high"]
        except (SafetensorError, KeyError) as error:
            raise FvlightError(f"{str(path)!r} is damaged: delete it, and it is made anew") from error
    low, high = draw_crops(**arguments)  # type: ignore[arg-type]
    write_atomically(path, lambda file: save_file({"low": low, "high": high}, file))
    return low, high
