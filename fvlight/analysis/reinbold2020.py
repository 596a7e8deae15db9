"""The checkable claims of Reinbold & Westermann 2020 (Grad-IFV), each measured on the results of an experiment.

Runs are known by their names: `realize…` has the realizations, `invert…` what was inferred from them (`invert_noise…`
with the robust option, `invert_smallest…` by the paper's rule), `again_X…` images that were optimised further toward X.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvlight.analysis.claims import Claim
from fvlight.analysis.critical_space import projected_angles
from fvlight.analysis.diverse import finite
from fvlight.analysis.indices import Estimate, bootstrap
from fvlight.analysis.inverse import angles, scaling
from fvlight.analysis.similarity import ssim
from fvlight.analysis.targets import random_targets
from fvlight.errors import FvlightError
from fvlight.network import Network

Results = Mapping[str, Any]
Networks = Mapping[str, Network]
PAPER = "Reinbold & Westermann 2020"
OUTLIER = 45.0  # degrees from which on a prediction is one: nearer to random vectors than to its target
VARIANTS = ("noise", "smallest")  # of an inversion
TOWARD = ("targets", "predicted", "response", "random")


def reached(results: Results, suffix: str = "") -> Tensor:
    """Which targets (t,) have a realization at all: silent features have none, see `RealizationResult.silent`."""
    found = results[f"realize{suffix}"]
    mask = torch.tensor([word in ("converged", "max_steps") for word in found.status])
    mask[found.silent] = False
    return mask


def known_angles(results: Results, suffix: str = "", variant: str = "") -> dict[str, Tensor]:
    """Degrees (t,) to the targets: of predictions, of those over living features, of responses, of random vectors.

    ``variant`` is one of `VARIANTS`, or "" for the inversion itself.

    NaN where a target has no realization, or was used to choose a critical space.
    """
    found = results[f"invert_{variant}{suffix}" if variant else f"invert{suffix}"]
    if found.targets is None:
        raise FvlightError(f"invert{suffix}: the targets of its images are not known, and without them no angle")
    whole, among = found.angles(), found.angles(living=True)
    # directions that have nothing to do with the targets: of another seed than these
    chance = angles(random_targets(len(found.targets), found.targets.shape[1], seed=-1), found.targets)
    values = {
        "predicted": whole["predicted"], "predicted_living": among["predicted"], "response": whole["response"],
        "random": chance,
    }  # fmt: skip
    use = reached(results, suffix)
    use[: found.known] = False
    return {name: value.where(use, torch.nan) for name, value in values.items()}


def told_angles(results: Results) -> Tensor:
    """Degrees (t,) of the predictions to what can be told of the targets: to all of them without a critical space."""
    found, chosen = results["invert"], known_angles(results)["predicted"]
    if found.choice is None or found.choice.space is None:
        return chosen
    m = scaling(found.responses, 2)
    told = projected_angles(found.objectives, found.targets, found.choice.space.basis, m)
    return told.where(chosen.isfinite(), torch.nan)


def similarities(results: Results, networks: Networks, suffix: str = "") -> dict[str, Tensor]:
    """SSIM (t,) of each realization as it was and after it was optimised further, by direction [Sec. 3.2]."""
    before, use = results[f"realize{suffix}"], reached(results, suffix)
    space = networks[f"realize{suffix}"].input_space
    pairs = {name: results[f"again_{name}{suffix}"] for name in TOWARD if f"again_{name}{suffix}" in results}
    return {
        name: ssim(space.to_rgb(before.images), space.to_rgb(after.images)).where(use, torch.nan)
        for name, after in pairs.items()
    }


def measures(results: Results, networks: Networks) -> dict[str, Any]:
    """For ``summary.json``: per suffix of the runs' names the angles and SSIM per target, and the dead features."""
    found = {}
    for suffix in suffixes(results):
        part: dict[str, Any] = {
            "angles": {name: _plain(values) for name, values in known_angles(results, suffix).items()},
            "ssim": {name: _plain(values) for name, values in similarities(results, networks, suffix).items()},
            "dead_features": (~results[f"invert{suffix}"].living).sum(1).tolist(),
            "silent_targets": results[f"realize{suffix}"].silent,
        }
        for variant in VARIANTS:
            if f"invert_{variant}{suffix}" in results:
                part["angles"][f"predicted_{variant}"] = _plain(known_angles(results, suffix, variant)["predicted"])
        found[suffix.removeprefix("_")] = part
    return found[""] if list(found) == [""] else found


def suffixes(results: Results) -> list[str]:
    """What follows `invert` in the names of runs: "" of a single one, `_X` of several."""
    names = [name.removeprefix("invert") for name in results if name.startswith("invert")]
    return [name for name in names if name[1:].partition("_")[0] not in VARIANTS]


def _plain(values: Tensor) -> list[float | None]:
    return [finite(value) for value in values]


# -- claims ------------------------------------------------------------------------------------------------------


def inverted_layer(results: Results, networks: Networks) -> list[Claim]:
    """Sec. 3.2: GoogLeNet's inception4c."""
    found = known_angles(results)
    claims = [_against_response(found), _outliers(found["predicted"])]
    if "invert_noise" in results:
        averaged = known_angles(results, "", "noise")["predicted"]
        claims.append(_nearer(found["predicted"], averaged, "Averaging Jacobians over noise on the parameters"))
    if "invert_smallest" in results:
        plain = known_angles(results, "", "smallest")["predicted"]
        claims.append(_nearer(plain, found["predicted"], "The rule log, in place of the smallest singular vector,"))
    return [*claims, *_similar(similarities(results, networks))]


def _against_response(found: Mapping[str, Tensor]) -> Claim:
    ratio = bootstrap(lambda a, b: float(np.median(a) / np.median(b)), found["predicted"], found["response"])
    return Claim(
        "Predictions are much nearer to the targets than feature responses are",
        f"{PAPER}, Sec. 3.2",
        f"median angle {_spread(found['predicted'])}, over living features {_spread(found['predicted_living'])}; "
        f"responses {_spread(found['response'])}, random vectors {_spread(found['random'])}; ratio of the medians "
        f"{_over(ratio)}",
        "a third of the responses' median or less",
        ratio.value <= 1 / 3 if ratio.count > 1 else None,
    )


def _outliers(predicted: Tensor) -> Claim:
    share = bootstrap(lambda values: float(np.mean(values > OUTLIER)), predicted)
    return Claim(
        f"There are very few outliers (beyond {OUTLIER:g} degrees)",
        f"{PAPER}, Sec. 3.2", f"share {_over(share)}", "<= 0.05", share.value <= 0.05 if share.count > 1 else None,
    )  # fmt: skip


def _nearer(plain: Tensor, other: Tensor, text: str) -> Claim:
    gain = bootstrap(lambda a, b: float(np.median(a) - np.median(b)), plain, other)
    holds = None if gain.count < 2 or gain.low <= 0 <= gain.high else gain.low > 0
    return Claim(
        f"{text} brings predictions nearer to the targets", "fvlight: a remedy for kinks",
        f"the median angle falls by {_over(gain)} degrees to {_spread(other)}; the largest is {_largest(other)} "
        f"instead of {_largest(plain)}",
        "a fall, its interval above 0", holds,
    )  # fmt: skip


def _similar(found: Mapping[str, Tensor]) -> list[Claim]:
    """What re-optimisation does to the images [Fig. 2]."""
    if not set(TOWARD) <= set(found):
        return []
    gain = bootstrap(lambda a, b: float(np.median(a) - np.median(b)), found["predicted"], found["response"])
    loss = bootstrap(lambda a, b: float(np.median(a) - np.median(b)), found["targets"], found["predicted"])
    return [
        Claim(
            "Optimised further toward the prediction an image stays more similar to itself than toward the response",
            f"{PAPER}, Sec. 3.2",
            f"median SSIM {', '.join(f'{name} {_median(values):.3f}' for name, values in found.items())}; difference "
            f"{_over(gain)}",
            "predicted > response, the interval above 0", gain.low > 0 if gain.count > 1 else None,
        ),
        Claim(
            "It stays as similar as toward the target itself",
            f"{PAPER}, Sec. 3.2", f"median SSIM lower by {_over(loss)}", "<= 0.05",
            loss.value <= 0.05 if loss.count > 1 else None,
        ),
    ]  # fmt: skip


def dead_directions(results: Results, networks: Networks) -> list[Claim]:
    """Sec. 3.4: logits whose differences alone matter, and a class that was never trained."""
    found, targets = results["invert"], results["realize"].targets
    if found.choice is None or not found.known:
        return []
    n = targets.shape[1]
    everywhere = found.choice.angles[0]
    space = found.choice.space
    chosen = known_angles(results)["predicted"]
    claims = [
        Claim(
            "Without a critical space predictions fail", f"{PAPER}, Sec. 3.4",
            f"median angle {_spread(everywhere)} ({found.known} targets)", "median above 30 degrees",
            _median(everywhere) > 30,
        )
    ]  # fmt: skip
    if space is None:
        text = f"none of {len(found.spaces)} spaces predicts better than all of R^{n}"
        return [*claims, Claim("Algorithm 1 finds a critical space", f"{PAPER}, Sec. 3.4", text, "one", False)]
    ones = torch.ones(n, 1, dtype=torch.float64) / n**0.5
    dimensions = ", ".join(str(one.basis.shape[1]) for one in found.spaces)
    dead = networks["realize"].name == "densenet_bc" and space.trivial.shape[1] == 2
    shift = float(torch.rad2deg(torch.asin((space.basis.T @ ones).norm().clamp(max=1))))
    claims.append(
        Claim(
            "The complement of the critical space holds the direction (1, ..., 1)", f"{PAPER}, Sec. 3.4",
            f"spaces of {dimensions} dimensions, that of {space.basis.shape[1]} chosen; (1, ..., 1) is "
            f"{shift:.2g} degrees from its complement",
            "less than 1 degree", shift < 1,
        )
    )  # fmt: skip
    if dead:
        distances = torch.rad2deg(torch.asin(space.basis.norm(dim=1).clamp(max=1)))
        claims.append(
            Claim(
                "Where a class is dead the complement also holds its logit", f"{PAPER}, Sec. 3.4",
                f"logit {int(distances.argmin())} is {float(distances.min()):.2g} degrees from it",
                "less than 1 degree", bool(distances.min() < 1),
            )
        )  # fmt: skip
    told = told_angles(results)
    claims.append(
        Claim(
            "Within the critical space predictions are near to what can be told of the targets", f"{PAPER}, Sec. 3.4",
            f"median angle {_spread(told)}; to the whole targets {_spread(chosen)}",
            "median below 10 degrees", _median(told) < 10,
        )
    )  # fmt: skip
    return claims


def robustness(results: Results, networks: Networks) -> list[Claim]:
    """Secs. 3.5 and 3.6: the same with other powers, aggregations, numbers of features, parameterizations."""
    medians = {suffix[1:]: known_angles(results, suffix)["predicted"] for suffix in suffixes(results)}
    squared = {name: values for name, values in medians.items() if not name.startswith("k0")}
    claims = [
        _near(
            "With k = 2 predictions are near to the targets under every condition", "Secs. 3.5, 3.6", squared, medians
        )
    ]
    plain = {name: values for name, values in medians.items() if name.startswith("k0")}
    if plain:
        pairs = [(name, "k2" + name[2:]) for name in plain if "k2" + name[2:] in medians]
        worse = sum(_median(medians[a]) > _median(medians[b]) for a, b in pairs)
        claims.append(
            Claim(
                "With k = 0 they are farther from them", f"{PAPER}, Sec. 3.6",
                f"a larger median than with k = 2 under {worse} of {len(pairs)} conditions", "more than half of them",
                2 * worse > len(pairs),
            )
        )  # fmt: skip
    return claims


def always_accurate(results: Results, networks: Networks) -> list[Claim]:
    """Sec. 3.7: SRNet, with and without the cosine."""
    found = {suffix[1:]: known_angles(results, suffix)["predicted"] for suffix in suffixes(results)}
    return [_near("Predictions are near to the targets with and without the cosine", "Sec. 3.7", found, found)]


def _near(text: str, section: str, found: Mapping[str, Tensor], shown: Mapping[str, Tensor]) -> Claim:
    """About the worst of several conditions; others may be shown beside them."""
    worst = max(found, key=lambda name: _median(found[name]))
    every = "; ".join(f"{name} {_spread(values)}" for name, values in shown.items())
    return Claim(
        text, f"{PAPER}, {section}", f"worst median angle {_median(found[worst]):.3g} degrees ({worst}); {every}",
        "every median below 10 degrees", _median(found[worst]) < 10,
    )  # fmt: skip


def _median(values: Tensor) -> float:
    good = values[values.isfinite()]
    return float(good.quantile(0.5)) if len(good) else float("nan")


def _spread(values: Tensor) -> str:
    good = values[values.isfinite()]
    if not len(good):
        return "unknown"
    low, middle, high = good.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=good.dtype)).tolist()
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _largest(values: Tensor) -> str:
    good = values[values.isfinite()]
    return f"{good.max():.3g}" if len(good) else "unknown"


def _over(estimate: Estimate) -> str:
    return str(estimate).replace("units", "targets")


CLAIMS: dict[str, Callable[[Results, Networks], list[Claim]]] = {
    "inverted_layer": inverted_layer,
    "dead_directions": dead_directions,
    "robustness": robustness,
    "always_accurate": always_accurate,
}
