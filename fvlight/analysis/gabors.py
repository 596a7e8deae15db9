"""Gabor functions fitted to images, and what their phases say: a complex cell likes all of them, a simple cell one.

Jones & Palmer 1987, with the envelope's axes along and across the stripes. Pixels are counted from the middle of the
image, y downwards; angles are in degrees; orientation 0 varies along the width, as in the zoo's cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from fvlight.analysis.phases import circular_gaps
from fvlight.errors import FvlightError

Array = NDArray[np.float64]
LARGEST_GAP = 150.0  # degrees that a complex cell's phases may leave on the circle


@dataclass(frozen=True)
class Gabor:
    """``amplitude · exp(-(u² + (v / aspect)²) / (2 sigma²)) · cos(2 pi u / period + phase)``.

    u runs from (x, y) across the stripes, in the direction of ``orientation``, and v along them.

    Attributes:
        x, y: the middle of the envelope, pixels to the right of and below the image's middle.
        sigma: of the envelope, across the stripes.
        aspect: its length along the stripes over that across.
        period: pixels.
        orientation: [0, 180).
        phase: [0, 360), at (x, y); `phase_at` tells it elsewhere.
        amplitude: not negative.
        explained_variance: share of the image's power (about zero, the input space's grey) that the function
            explains.
    """

    x: float
    y: float
    sigma: float
    aspect: float
    period: float
    orientation: float
    phase: float
    amplitude: float = 1.0
    explained_variance: float = 1.0

    @property
    def frequency(self) -> Array:
        """(x, y) in cycles per pixel, in the direction of ``orientation``."""
        angle = math.radians(self.orientation)
        return np.array([math.cos(angle), math.sin(angle)]) / self.period

    def phase_at(self, x: float, y: float) -> float:
        """The phase [0, 360) of the grating at another point."""
        away = np.array([x - self.x, y - self.y])
        return _wrapped(float(self.phase + 360 * self.frequency @ away))

    def image(self, height: int, width: int) -> Tensor:
        """(height, width), float64."""
        turned = self.amplitude * np.exp(1j * math.radians(self.phase))
        shape = [self.x, self.y, math.log(self.sigma), math.log(self.sigma * self.aspect), *self.frequency]
        values, _ = _model(np.array([*shape, turned.real, turned.imag]), _points(height, width))
        return torch.from_numpy(values).view(height, width)


def _wrapped(degrees: float, turn: float = 360.0) -> float:
    """In [0, turn): a remainder of a tiny negative number is rounded to the whole turn, and is 0."""
    remainder = degrees % turn
    return 0.0 if remainder == turn else remainder


def _points(height: int, width: int) -> Array:
    """(2, height · width): x and y from the middle."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return np.stack([x.ravel() - (width - 1) / 2, y.ravel() - (height - 1) / 2])


def _model(p: Array, points: Array) -> tuple[Array, Array]:
    """Values (D,) and their Jacobian (D, 8) for p = (x, y, log sigma, log sigma along the stripes, frequency x and y,
    a, b), where ``a + ib = amplitude · exp(i phase)``: no angle wraps, and the last two are linear."""
    x0, y0, log_u, log_v, fx, fy, a, b = p
    x, y = points[0] - x0, points[1] - y0
    frequency = math.hypot(fx, fy)
    cosine, sine = fx / frequency, fy / frequency
    u, v = x * cosine + y * sine, y * cosine - x * sine
    inverse_u, inverse_v = math.exp(-2 * log_u), math.exp(-2 * log_v)
    envelope = np.exp(-0.5 * (u * u * inverse_u + v * v * inverse_v))
    angle = 2 * math.pi * frequency * u
    even, odd = envelope * np.cos(angle), envelope * np.sin(angle)
    values, slope = a * even - b * odd, -2 * math.pi * (a * odd + b * even)  # slope: by the cycles f · (x, y)
    turn = values * u * v * (inverse_v - inverse_u) / frequency  # of the envelope, with the frequency's direction
    return values, np.stack(
        [
            values * (u * cosine * inverse_u - v * sine * inverse_v) - slope * fx,
            values * (u * sine * inverse_u + v * cosine * inverse_v) - slope * fy,
            values * u * u * inverse_u,
            values * v * v * inverse_v,
            slope * x - sine * turn,
            slope * y + cosine * turn,
            even,
            -odd,
        ],
        1,
    )


def fit_gabor(image: Tensor) -> Gabor:
    """The Gabor function nearest to an image (H, W), by least squares.

    It begins at the peak of the spectrum with the moments of the envelope; further peaks lead nowhere better, by trial.
    Where an envelope is narrower than about a third of a period, period and phase describe nearly the same thing.

    Raises:
        FvlightError: an image of another shape, below 4 pixels, of one value everywhere, or not finite.
    """
    if image.dim() != 2 or min(image.shape) < 4:
        raise FvlightError(
            f"an image of shape {tuple(image.shape)}: a Gabor is fitted to (H, W), at least 4 pixels each"
        )
    pixels = image.detach().double().cpu().numpy()
    norm = float(np.linalg.norm(pixels))
    if not norm < math.inf or np.ptp(pixels) == 0:
        what = "the same value everywhere" if norm < math.inf else "values that are not finite"
        raise FvlightError(f"an image with {what}: no Gabor can be fitted to it; leave it out")
    pixels = pixels / norm
    height, width = pixels.shape
    points, flat = _points(height, width), pixels.ravel()
    widest = math.log(2.0 * max(height, width))
    low = np.array([-width, -height, *[math.log(0.4)] * 2, -0.5, -0.5, -math.inf, -math.inf])
    high = np.array([width, height, widest, widest, 0.5, 0.5, math.inf, math.inf])
    found = least_squares(
        lambda p: _model(p, points)[0] - flat, _start(pixels, points).clip(low + 1e-6, high - 1e-6),
        lambda p: _model(p, points)[1], (low, high), x_scale="jac", ftol=1e-10, xtol=1e-10, gtol=1e-10, max_nfev=200,
    )  # fmt: skip
    return _gabor(found.x, norm, 1 - 2 * float(found.cost))


def fit_gabors(images: Tensor) -> list[Gabor]:
    """Of each of several images (n, H, W)."""
    return [fit_gabor(image) for image in images]


def _gabor(p: Array, norm: float, explained: float) -> Gabor:
    x, y, log_u, log_v, fx, fy, a, b = (float(value) for value in p)
    orientation, phase = _wrapped(math.degrees(math.atan2(fy, fx))), math.degrees(math.atan2(b, a))
    if orientation >= 180:  # the same grating, counted the other way
        orientation, phase = orientation - 180, -phase
    return Gabor(
        x, y, math.exp(log_u), math.exp(log_v - log_u), 1 / math.hypot(fx, fy), orientation, _wrapped(phase),
        norm * math.hypot(a, b), explained,
    )  # fmt: skip


def _peak(pixels: Array) -> Array:
    """The frequency (x, y) at which the spectrum is highest."""
    size = 4 * pixels.shape[0], 4 * pixels.shape[1]  # finely sampled
    power = np.abs(np.fft.rfft2(pixels - pixels.mean(), size))
    row, column = np.unravel_index(int(power.argmax()), power.shape)
    return np.array([np.fft.rfftfreq(size[1])[column], np.fft.fftfreq(size[0])[row]])


def _start(pixels: Array, points: Array) -> Array:
    """First values of the parameters: the spectrum's peak, and in an octave about it the envelope's middle and widths.

    From a narrow envelope in the image's middle instead, a third of small Gabors far from it are missed where noise is
    as strong as they are.
    """
    frequency = _peak(pixels)
    height, width = pixels.shape
    magnitude = float(np.hypot(*frequency))
    size = 2 * height, 2 * width  # what the filter smears over the border must not come in at the other
    fy, fx = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :]
    band = magnitude / 2
    passed = np.exp(-((fx - frequency[0]) ** 2 + (fy - frequency[1]) ** 2) / (2 * band**2))
    filtered = np.fft.ifft2(np.fft.fft2(pixels, size) * passed)[:height, :width].ravel()
    weights = np.abs(filtered) ** 4  # an envelope of half the width: noise far away counts little
    weights /= weights.sum()
    middle = points @ weights
    away = points - middle[:, None]
    direction = frequency / magnitude
    across, along = direction @ away, direction[0] * away[1] - direction[1] * away[0]
    blur = 1 / (2 * math.pi * band)
    sigmas = [math.sqrt(max(4 * float(weights @ axis**2) - blur**2, blur**2)) for axis in (across, along)]
    start = np.array([*middle, *np.log(sigmas), *frequency, 0.0, 0.0])
    start[6:] = np.linalg.lstsq(_model(start, points)[1][:, 6:], pixels.ravel(), rcond=None)[0]
    return start


def phase_difference(a: float | Tensor, b: float | Tensor) -> Tensor:
    """From b to a the shorter way round, in [-180, 180)."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return (a - b + 180) % 360 - 180


@dataclass(frozen=True)
class PhaseSpread:
    """Phases of a unit's images around the circle.

    Attributes:
        phases: (m,) degrees of the images that are alike Gabors, at one point and counted in one direction.
        images: their places among the images that were given.
        period, orientation: what they share.
        circular_variance: ``1 - |mean exp(i phase)|``: 0 for one phase, 1 for evenly spread ones, but also for two
            that are opposite.
        largest_gap: degrees; 360 for one phase, 360 / m for evenly spread ones, 180 at least for two that are
            opposite.
    """

    phases: Tensor
    images: list[int]
    period: float
    orientation: float
    circular_variance: float
    largest_gap: float

    @property
    def coverage(self) -> float:
        """0 for one phase, 1 for evenly spread ones: how much of the circle lies outside the largest gap, over how
        much may. NaN for fewer than two images."""
        count = len(self.phases)
        return (360 - self.largest_gap) / (360 - 360 / count) if count > 1 else float("nan")


def phase_spread(
    gabors: Sequence[Gabor], *, minimum: float = 0.5, angle: float = 20.0, octaves: float = 0.5
) -> PhaseSpread:
    """Compare the phases of a unit's images.

    Each Gabor has its phase at the middle of its own envelope, which differs between images. Phases are therefore
    read where the common envelope has its middle.

    Args:
        minimum: explained variance that makes an image a Gabor.
        angle, octaves: how far orientation and period may lie off the median image's; phases of different gratings
            can't be compared.
    """
    good = [i for i, gabor in enumerate(gabors) if gabor.explained_variance >= minimum]
    if not good:
        nan = float("nan")
        return PhaseSpread(torch.zeros(0, dtype=torch.float64), [], nan, nan, nan, nan)
    centre = min((gabors[i] for i in good), key=lambda one: sum(_unlike(one, gabors[i], angle, octaves) for i in good))
    alike = [i for i in good if _unlike(centre, gabors[i], angle, octaves) <= 1]
    turned = [_turned_towards(gabors[i], centre) for i in alike]
    frequency = np.mean([gabor.frequency for gabor in turned], 0)
    x, y = (float(np.mean([getattr(gabor, axis) for gabor in turned])) for axis in "xy")
    phases = torch.tensor([gabor.phase_at(x, y) for gabor in turned], dtype=torch.float64)
    mean = torch.polar(torch.ones_like(phases), phases.deg2rad()).mean()
    orientation = _wrapped(math.degrees(math.atan2(frequency[1], frequency[0])), 180)
    largest = float(circular_gaps(phases).max())
    return PhaseSpread(phases, alike, 1 / float(np.hypot(*frequency)), orientation, 1 - float(mean.abs()), largest)


def _unlike(a: Gabor, b: Gabor, angle: float, octaves: float) -> float:
    """Above 1 where two gratings differ by more than an angle or so many octaves."""
    turn = abs((a.orientation - b.orientation + 90) % 180 - 90)
    return max(turn / angle, abs(math.log2(a.period / b.period)) / octaves)


def _turned_towards(gabor: Gabor, other: Gabor) -> Gabor:
    """The same function with its phase counted in the other's direction: 179° and 1° are neighbours."""
    if gabor.frequency @ other.frequency >= 0:
        return gabor
    return replace(gabor, orientation=gabor.orientation + 180, phase=-gabor.phase)


def is_complex(
    images: Tensor | Sequence[Gabor], *, minimum: float = 0.5, gap: float = LARGEST_GAP, share: float = 0.5
) -> bool | None:
    """Whether a unit's diverse images (n, H, W), or the Gabors fitted to them, are one Gabor at phases all round.

    The images are those of the chosen lambda: larger ones press a simple cell, too, into Gabors that it hardly likes.

    Args:
        minimum: explained variance that makes an image a Gabor.
        gap: the largest that phases may leave on the circle, in degrees. Below 180: a unit that likes two opposite
            phases is none.
        share: of the images that must be Gabors of like orientation and period.

    Returns:
        None where fewer of them are, or fewer than three: they can't tell.
    """
    gabors = fit_gabors(images) if isinstance(images, Tensor) else images
    spread = phase_spread(gabors, minimum=minimum)
    if len(spread.images) < max(3, share * len(gabors)):
        return None
    return spread.largest_gap <= gap
