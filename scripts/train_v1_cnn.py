"""Train the V1 network of Cadena et al. 2019 on simulated simple and complex cells that look at photographs.

    python scripts/train_v1_cnn.py --images FOLDER [--population 0] [--out FILE.safetensors]

The recipe is the authors' (github.com/sacadena/Cadena2019PlosCB, cnnsysid.py): a Poisson loss; smooth kernels in the
first layer, few in the others, a sparse readout; Adam, which ends when the loss on held-out photographs has not
fallen for ten checks, and goes on twice at a third of the rate. Ours, for a training of minutes on one core:
Adam begins at 3e-3, batches of 64 (theirs: 256) are drawn anew from the photographs at every step, a stage has a limit
to its steps, and the responses are without noise, divided by their mean.

Of every ten photographs one is held out to stop by and one to test on. The correlation with the cells' true responses
on the latter is printed for each kind of cell. About five minutes on one free core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn

from fvlight import FvlightError
from fvlight.images import list_images, read_image
from fvlight.network import InputSpace
from fvlight.results import write_atomically
from fvlight.zoo.v1_cnn import SPACE, V1CNN, trained_file
from fvlight.zoo.v1_population import KINDS, SIZE, Cell, draw_population, responses
from fvlight.zoo.weights import seeded

SMOOTHNESS, GROUPS, SPARSITY = 3e-4, 2.5e-4, 2e-4  # the authors' weights of the three penalties
STAGES = 3
CHECK, PATIENCE = 100, 10  # steps, checks
HELD_OUT, SCALED_BY = 4000, 20000  # patches
LAPLACIAN = torch.tensor([[0.25, 0.5, 0.25], [0.5, -3.0, 0.5], [0.25, 0.5, 0.25]])[None, None]


def load_photographs(folder: Path, space: InputSpace = SPACE) -> list[list[Tensor]]:
    """Grey photographs (1, H, W) in the network's input space, to train, to stop by, and to test on."""
    paths = list_images(folder)
    parts: list[list[Tensor]] = [[], [], []]
    for i, path in enumerate(paths):
        photograph = space.from_rgb(read_image(path))
        if min(photograph.shape[1:]) >= SIZE:
            parts[{8: 1, 9: 2}.get(i % 10, 0)].append(photograph)
    if not all(parts):
        raise FvlightError(f"--images {folder}: at least ten photographs of {SIZE} x {SIZE} pixels and more are needed")
    return parts


def draw_patches(photographs: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """(count, 1, 40, 40) from anywhere in any photograph."""
    where = torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist()
    found = []
    for a, b, c in where:
        photograph = photographs[int(a * len(photographs))]
        i, j = (int(at * (side - SIZE + 1)) for at, side in zip((b, c), photograph.shape[1:], strict=True))
        found.append(photograph[:, i : i + SIZE, j : j + SIZE])
    return torch.stack(found)


def poisson_loss(predicted: Tensor, rates: Tensor) -> Tensor:
    """Negative log-likelihood but for a constant; its smallest value is that of the true rates."""
    return (predicted - rates * torch.log(predicted + 1e-9)).mean()


def penalty(module: V1CNN) -> Tensor:
    """Rough kernels in the first layer, many kernels in the others, large readouts."""
    first, *others = (part.weight for part in module if isinstance(part, nn.Conv2d))
    rough = F.conv2d(first, LAPLACIAN.to(first), padding=1).square().sum((1, 2, 3)) / first.square().sum((1, 2, 3))
    groups = sum(weight.flatten(2).norm(dim=2).sum() for weight in others)
    readout = module.get_submodule("readout")
    sizes = readout.spatial.abs().sum((1, 2)) * readout.features.abs().sum(1)  # type: ignore[union-attr, operator]
    return SMOOTHNESS * rough.sum() + GROUPS * groups + SPARSITY * sizes.sum()


@torch.no_grad()
def predict(module: V1CNN, images: Tensor) -> Tensor:
    """Rates (N, cells), in evaluation mode."""
    module.eval()
    return torch.cat([module(part) for part in images.split(250)])


def correlations(predicted: Tensor, rates: Tensor) -> Tensor:
    """Pearson's, of each cell: (N, cells) twice to (cells,)."""
    a, b = predicted - predicted.mean(0), rates - rates.mean(0)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))


@dataclass
class Recipe:
    """How long, and on how much at once; ``steps`` at most in each of the stages."""

    steps: int = 600
    batch: int = 64
    rate: float = 3e-3


def train(
    cells: list[Cell], photographs: list[list[Tensor]], seed: int, recipe: Recipe, console: Console | None = None
) -> V1CNN:
    """The network with the least loss on the photographs to stop by, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    scale = responses(cells, draw_patches(photographs[0], SCALED_BY, generator)).mean(0)
    held_out = draw_patches(photographs[1], HELD_OUT, generator)
    rates = responses(cells, held_out) / scale
    module = seeded(lambda: V1CNN(len(cells)), seed)
    nn.init.ones_(module.get_submodule("readout").bias)  # type: ignore[arg-type]  # a rate of 1, the mean
    optimizer = torch.optim.Adam([value for value in module.parameters() if value.requires_grad])
    best, kept = float("inf"), _state(module)
    with Progress(console=console) as progress:
        for stage in range(STAGES):
            bar, waited = progress.add_task(f"stage {stage + 1} of {STAGES}", total=recipe.steps), 0
            module.load_state_dict(kept)
            optimizer.param_groups[0]["lr"] = recipe.rate / 3**stage
            for step in range(1, recipe.steps + 1):
                patches = draw_patches(photographs[0], recipe.batch, generator)
                _step(module, optimizer, patches, responses(cells, patches) / scale)
                progress.advance(bar)
                if step % CHECK and step < recipe.steps:
                    continue
                predicted = predict(module, held_out)
                loss = float(poisson_loss(predicted, rates) + penalty(module).detach())
                correlation = float(correlations(predicted, rates).mean())
                progress.console.print(f"step {step}: held-out loss {loss:.4f}, correlation {correlation:.3f}")
                waited = 0 if loss < best else waited + 1
                if loss < best:
                    best, kept = loss, _state(module)
                if waited >= PATIENCE:
                    break
    module.load_state_dict(kept)
    return module.eval()


def _state(module: V1CNN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _step(module: V1CNN, optimizer: torch.optim.Optimizer, patches: Tensor, rates: Tensor) -> None:
    module.train()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):  # a third faster
        predicted = module(patches)
    (poisson_loss(predicted.float(), rates) + penalty(module)).backward()
    optimizer.step()


def write(module: V1CNN, out: Path, metadata: dict[str, str]) -> None:
    """The weights; kernels and masks with 16 bits, which changes no correlation by 0.001."""
    state = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    tensors = {name: value.half() if value.dim() > 1 else value for name, value in state.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, lambda path: path.write_bytes(save(tensors, metadata)))
    except (FvlightError, OSError) as error:
        raise FvlightError(f"--out {str(out)!r} can't be written ({error}): choose another file") from error


def run(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out or trained_file(arguments.population)
    if out.suffix != ".safetensors":
        raise FvlightError(f"--out {str(out)!r} is not a .safetensors file")
    photographs = load_photographs(arguments.images)
    cells = draw_population(arguments.population)
    recipe = Recipe(arguments.steps)
    module = train(cells, photographs, arguments.population, recipe, Console(stderr=True))
    write(module, out, {"population": str(arguments.population), "steps": str(recipe.steps)})
    patches = draw_patches(photographs[2], HELD_OUT, torch.Generator().manual_seed(arguments.population))
    found = correlations(predict(module, patches), responses(cells, patches))
    for kind in KINDS:
        of_kind = found[[cell.kind == kind for cell in cells]]
        least, most = float(of_kind.min()), float(of_kind.max())
        print(f"{kind}: {len(of_kind)} cells, correlation {float(of_kind.mean()):.3f} ({least:.3f} to {most:.3f})")
    print(out)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="photographs")
    parser.add_argument("--population", type=int, default=0, metavar="SEED", help="of the cells, and of the training")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="at most, in each of the three stages")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: where weights=default looks for it")
    try:
        run(parser.parse_args(given))
    except FvlightError as error:
        print(f"train_v1_cnn: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
