"""PixelCNN++: exactly causal, equal to loops over pixels, initialised by data; its weights; samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fvlight import FvlightError
from fvlight.priors.logistic_mixture import log_likelihood
from fvlight.zoo.pixelcnn import PixelCNN, initialise, sample
from fvlight.zoo.pixelcnn_weights import convert_checkpoint, load_pixelcnn
from tests.helpers import built, relative_error, snapshot
from tests.priors.test_logistic_mixture import by_loops


def images_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def network(filters: int = 3, resnets: int = 1, mixtures: int = 3) -> PixelCNN:
    """Float64, initialised by data, biases drawn: at zero they would hide what padding does."""
    module = built(lambda: PixelCNN(filters, resnets, mixtures, 0.0))
    initialise(module, images_of(4, 3, 8, 8, seed=1))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    for _, part in module.convolutions:  # type: ignore[union-attr, operator]
        part.conv.bias.data += 0.2 * torch.randn(part.conv.bias.shape, generator=generator, dtype=torch.float64)
    return module  # type: ignore[return-value]


@pytest.mark.parametrize(("size", "resnets"), [((8, 8), 1), ((4, 12), 2), ((12, 4), 1)])
def test_no_pixel_depends_on_itself_or_on_later_ones(size: tuple[int, int], resnets: int) -> None:
    """The parameters of a pixel by those before it alone, its likelihood by itself, too."""
    module, x = network(resnets=resnets), images_of(1, 3, *size).requires_grad_()
    given = module(x)
    pixels = size[0] * size[1]
    for values, first_unseen in ((given.square().sum(1), 0), (log_likelihood(given, x), 1)):
        seen = torch.stack(
            [
                torch.autograd.grad(values.flatten()[i], x, retain_graph=True)[0].abs().sum(1).flatten()
                for i in range(pixels)
            ]
        )
        later = torch.ones(pixels, pixels).triu(first_unseen).bool()
        assert seen[later].max() == 0
        neighbours = seen.diagonal(-1)[torch.arange(1, pixels) % size[1] != 0]
        assert (neighbours > 0).all()  # to the left
        assert (seen.diagonal(-size[1]) > 0).all()  # above
        assert (seen[~later] > 0).double().mean() > 0.8


# -- a slow implementation: a sum over taps at every pixel ------------------------------------------------------


def weights_of(part: torch.nn.Module) -> tuple[Tensor, Tensor, int]:
    """Filters (from their direction and length), biases, and the axis of the outputs."""
    conv = part.conv
    direction = conv.parametrizations.weight.original1  # type: ignore[union-attr]
    length = conv.parametrizations.weight.original0  # type: ignore[union-attr]
    axis = 1 if isinstance(conv, torch.nn.ConvTranspose2d) else 0
    others = [i for i in range(4) if i != axis]
    norm = direction.square().sum(others, keepdim=True).sqrt()  # type: ignore[union-attr, operator, arg-type]
    return length * direction / norm, conv.bias, axis  # type: ignore[return-value, operator]


def convolved(x: Tensor, part: torch.nn.Module, stride: int = 1) -> Tensor:
    """x (C, H, W): taps end at the pixel's row, and at its column or, kernels of three columns, one further."""
    weight, bias, _ = weights_of(part)
    rows, columns = weight.shape[2:]
    reach = 1 if columns == 3 else 0
    height, width = x.shape[1] // stride, x.shape[2] // stride
    out = bias[:, None, None].repeat(1, height, width)
    for i in range(height):
        for j in range(width):
            for r in range(rows):
                for c in range(columns):
                    y, z = stride * i + r - (rows - 1), stride * j + c - (columns - 1) + reach
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        out[:, i, j] += weight[:, :, r, c] @ x[:, y, z]
    return out


def enlarged(x: Tensor, part: torch.nn.Module) -> Tensor:
    weight, bias, _ = weights_of(part)
    rows, columns = weight.shape[2:]
    side = 1 if columns == 3 else 0
    height, width = 2 * x.shape[1], 2 * x.shape[2]
    out = bias[:, None, None].repeat(1, height, width)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            for r in range(rows):
                for c in range(columns):
                    y, z = 2 * i + r, 2 * j + c - side
                    if y < height and 0 <= z < width:
                        out[:, y, z] += weight[:, :, r, c].T @ x[:, i, j]
    return out


def elus(x: Tensor) -> Tensor:
    both = torch.cat([x, -x])
    return torch.where(both > 0, both, both.exp() - 1)


def gated(x: Tensor, part: torch.nn.Module, other: Tensor | None) -> Tensor:
    inside = convolved(elus(x), part.first)  # type: ignore[arg-type]
    if other is not None:
        inside = inside + convolved(elus(other), part.shortcut)  # type: ignore[arg-type]
    a, b = convolved(elus(inside), part.second).chunk(2)  # type: ignore[arg-type]
    return x + a / (1 + (-b).exp())


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    out = torch.zeros_like(x)
    out[:, down:, right:] = x[:, : x.shape[1] - down, : x.shape[2] - right]
    return out


def by_taps(module: PixelCNN, image: Tensor) -> Tensor:
    """The authors' model_spec, of one image (3, H, W)."""
    x = torch.cat([image, torch.ones_like(image[:1])])
    us = [shifted(convolved(x, module.first_above), 1, 0)]
    uls = [shifted(convolved(x, module.first_row), 1, 0) + shifted(convolved(x, module.first_left), 0, 1)]
    down, up = iter(module.down), iter(module.up)
    for level in range(3):
        if level:
            part = next(down)
            us.append(convolved(us[-1], part.above, 2))  # type: ignore[arg-type]
            uls.append(convolved(uls[-1], part.left, 2))  # type: ignore[arg-type]
        for _ in range(module.resnets):
            part = next(down)
            us.append(gated(us[-1], part.above, None))  # type: ignore[arg-type]
            uls.append(gated(uls[-1], part.left, us[-1]))  # type: ignore[arg-type]
    u, ul = us.pop(), uls.pop()
    for level in range(3):
        if level:
            part = next(up)
            u, ul = enlarged(u, part.above), enlarged(ul, part.left)  # type: ignore[arg-type]
        for _ in range(module.resnets + (level > 0)):
            part = next(up)
            u = gated(u, part.above, us.pop())  # type: ignore[arg-type]
            ul = gated(ul, part.left, torch.cat([u, uls.pop()]))  # type: ignore[arg-type]
    assert not us
    assert not uls
    return convolved(torch.where(ul > 0, ul, ul.exp() - 1), module.last)


@torch.no_grad()
def test_it_equals_a_slow_implementation_on_images_of_8_by_8() -> None:
    module, image = network(), images_of(1, 3, 8, 8, seed=3)
    found, expected = module(image)[0], by_taps(module, image[0])
    assert relative_error(found, expected) < 1e-12
    likely = log_likelihood(found[None], image)[0]
    slow = [
        math.log(by_loops(expected[:, i, j].tolist(), image[0, :, i, j].tolist())) for i in range(8) for j in range(8)
    ]
    torch.testing.assert_close(likely.flatten(), torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_more_blocks_and_other_sides_equal_it_too() -> None:
    module, image = network(filters=2, resnets=2, mixtures=1), images_of(1, 3, 4, 8, seed=4)
    assert relative_error(module(image)[0], by_taps(module, image[0])) < 1e-12


def test_the_authors_model_has_their_number_of_layers() -> None:
    """135 convolutions, 50 matrix products, 4 transposed ones, counted in their model.py."""
    with torch.device("meta"):
        module = PixelCNN()
    kernels = [tuple(part.conv.weight.shape[2:]) for _, part in module.convolutions]
    transposed = [part for _, part in module.convolutions if isinstance(part.conv, torch.nn.ConvTranspose2d)]
    assert (len(kernels), kernels.count((1, 1)), len(transposed)) == (189, 50, 4)
    assert module.last.conv.weight.shape == (100, 160, 1, 1)


@torch.no_grad()
def test_the_initialisation_gives_outputs_of_mean_0_and_std_1() -> None:
    module, images = built(lambda: PixelCNN(4, 1, 2, 0.0)), images_of(6, 3, 8, 8)
    initialise(module, images)  # type: ignore[arg-type]
    found: dict[str, Tensor] = {}
    handles = [
        part.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
        for name, part in module.convolutions  # type: ignore[union-attr, operator]
    ]
    module(images)
    for handle in handles:
        handle.remove()
    for name, part in module.convolutions:  # type: ignore[union-attr, operator]
        std, mean = torch.std_mean(found[name], (0, 2, 3), correction=0)
        wanted = 0.1 if name.endswith("second") else 1.0
        assert part.gain == wanted
        assert float(mean.abs().max()) < 1e-6
        torch.testing.assert_close(std, torch.full_like(std, wanted), rtol=1e-4, atol=0)  # 1e-8 stands in the root
    assert all(not part._forward_hooks for part in module.modules())


# -- weights ---------------------------------------------------------------------------------------------------


def checkpoint_of(filters: int, resnets: int, mixtures: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Variables as the authors' code makes them, in its order, with its shapes."""
    generator, counts, found = np.random.default_rng(seed), {"conv2d": 0, "dense": 0, "deconv2d": 0}, {}

    def variable(kind: str, shape: tuple[int, ...], outputs: int) -> None:
        name = f"model/{kind}_{counts[kind]}"
        counts[kind] += 1
        for key, size in (("V", shape), ("g", (outputs,)), ("b", (outputs,))):
            for suffix in ("", "/ExponentialMovingAverage", "_adam_mg"):
                found[f"{name}/{key}{suffix}"] = generator.normal(size=size).astype(np.float32)

    def conv(rows: int, columns: int, inputs: int, outputs: int) -> None:
        variable("conv2d", (rows, columns, inputs, outputs), outputs)

    def resnet(rows: int, columns: int, others: int) -> None:
        conv(rows, columns, 2 * f, f)
        if others:
            variable("dense", (2 * others, f), f)
        conv(rows, columns, 2 * f, 2 * f)

    f = filters
    conv(2, 3, 4, f), conv(1, 3, 4, f), conv(2, 1, 4, f)
    for level in range(3):
        if level:
            conv(2, 3, f, f), conv(2, 2, f, f)
        for _ in range(resnets):
            resnet(2, 3, 0), resnet(2, 2, f)
    for level in range(3):
        if level:
            variable("deconv2d", (2, 3, f, f), f), variable("deconv2d", (2, 2, f, f), f)
        for _ in range(resnets + (level > 0)):
            resnet(2, 3, f), resnet(2, 2, 2 * f)
    variable("dense", (f, 10 * mixtures), 10 * mixtures)
    found["beta1_power"] = np.float32(0.9)
    return found


@pytest.mark.parametrize(("filters", "resnets", "mixtures"), [(3, 2, 4), (5, 1, 2)])
def test_the_authors_checkpoint_is_converted(filters: int, resnets: int, mixtures: int, tmp_path: Path) -> None:
    variables = checkpoint_of(filters, resnets, mixtures)
    save_file(convert_checkpoint(variables), tmp_path / "converted.safetensors")
    for averaged, suffix in ((True, "/ExponentialMovingAverage"), (False, "")):
        module = load_pixelcnn(str(tmp_path / "converted.safetensors"), averaged=averaged)
        assert (module.filters, module.resnets, module.mixtures) == (filters, resnets, mixtures)
        assert not module.training
        first, last = module.down[0].above.first, module.last  # type: ignore[union-attr]
        v, g, b = (variables[f"model/conv2d_3/{key}{suffix}"] for key in "Vgb")
        expected = v / np.sqrt((v**2).sum((0, 1, 2))) * g  # rows, columns, inputs, outputs
        np.testing.assert_allclose(first.conv.weight.detach().numpy(), expected.transpose(3, 2, 0, 1), rtol=1e-5)
        np.testing.assert_array_equal(first.conv.bias.detach().numpy(), b)
        number = 9 * resnets + 4  # the last matrix product
        v, g = (variables[f"model/dense_{number}/{key}{suffix}"] for key in "Vg")
        np.testing.assert_allclose(
            last.conv.weight.detach().numpy()[:, :, 0, 0], (v / np.sqrt((v**2).sum(0)) * g).T, rtol=1e-5
        )
        enlarging = next(part for _, part in module.convolutions if isinstance(part.conv, torch.nn.ConvTranspose2d))
        v, g = (variables[f"model/deconv2d_0/{key}{suffix}"] for key in "Vg")  # rows, columns, outputs, inputs
        expected = v / np.sqrt((v**2).sum((0, 1, 3), keepdims=True)) * g[:, None]
        np.testing.assert_allclose(enlarging.conv.weight.detach().numpy(), expected.transpose(3, 2, 0, 1), rtol=1e-5)


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    variables = checkpoint_of(3, 1, 2)
    with pytest.raises(FvlightError, match="is not that of PixelCNN"):
        convert_checkpoint({"fc/kernel": np.zeros(3)})
    without = {name: value for name, value in variables.items() if name != "model/conv2d_7/g"}
    with pytest.raises(FvlightError, match="no model/conv2d_7/g:"):
        convert_checkpoint(without)
    wrong = {**variables, "model/deconv2d_1/V": np.zeros((2, 3, 3, 3), np.float32)}
    with pytest.raises(FvlightError, match=r"model/deconv2d_1/V of the checkpoint has shape \(2, 3, 3, 3\)"):
        convert_checkpoint(wrong)


def test_missing_and_foreign_weights_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FvlightError, match=r"no weights of PixelCNN\+\+ at .*none\.safetensors.*scripts/train\.py"):
        load_pixelcnn(str(tmp_path / "none.safetensors"))
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FvlightError, match=r"has nothing under 'averaged\.', only conv1"):
        load_pixelcnn(str(tmp_path / "other.safetensors"))
    save_file({"plain.conv1.weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(FvlightError, match=r"only plain: set prior\.averaged=false"):
        load_pixelcnn(str(tmp_path / "plain.safetensors"))
    with pytest.raises(FvlightError, match=r"not those of a PixelCNN\+\+: no 'first_above.conv.bias'"):
        load_pixelcnn(str(tmp_path / "plain.safetensors"), averaged=False)


@pytest.mark.parametrize("shape", [(1, 3, 8, 6), (1, 1, 8, 8), (3, 8, 8)])
def test_images_that_it_does_not_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(FvlightError, match="multiples of 4"):
        load_pixelcnn("random")(torch.zeros(shape))


@pytest.mark.parametrize("options", [{"filters": 0}, {"resnets": 0}, {"mixtures": 0}, {"dropout": 1.0}])
def test_sizes_that_are_none(options: dict[str, float]) -> None:
    with pytest.raises(FvlightError, match=next(iter(options))):
        PixelCNN(**options)  # type: ignore[arg-type]


def test_samples_are_drawn_pixel_by_pixel() -> None:
    """What is drawn has, by the network that drew it, the likelihood that its own entropy makes us expect.

    A network that would draw pixels in another order, or look at the wrong ones, would find its samples unlikely.
    """
    module = network()
    before = snapshot(module)
    drawn = sample(module.float(), 40, (8, 12), torch.Generator().manual_seed(0))
    module.double()
    assert snapshot(module)["modes"] == before["modes"]
    assert drawn.shape == (40, 3, 8, 12)
    assert drawn.abs().max() <= 1
    again = sample(module.float(), 40, (8, 12), torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, drawn)
    with torch.no_grad():
        own = log_likelihood(module(drawn), drawn)
        turned = log_likelihood(module(drawn.flip(2, 3)), drawn.flip(2, 3))
    assert float(own.sum((1, 2)).mean() - turned.sum((1, 2)).mean()) > 0
