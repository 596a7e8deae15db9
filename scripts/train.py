"""Train one of the networks that ship with fvlight.

    python scripts/train.py experiment=train/srnet hydra.run.dir=DIR [KEY=VALUE ...]

The recipes are zoo/training/*.py, their settings zoo/training/conf/experiment/train/*.yaml. The same command with the
same hydra.run.dir goes on with a training that was interrupted. In the end the folder holds the weights
(RECIPE.safetensors) with a card (RECIPE.md), the figures (summary.json), and pictures.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fvlight.cli import explain, hydra_raises, quiet
from fvlight.errors import FvlightError, unknown

CONFIG = Path(__file__).resolve().parents[1] / "zoo" / "training" / "conf"


def run(config: dict[str, Any], run_dir: Path, command: str) -> int:
    """Fit, then write weights, figures and pictures; the exit status."""
    from fvlight.results import write_summary, write_text
    from fvlight.training import fit
    from fvlight.zoo.training.base import write_weights
    from fvlight.zoo.training.card import card

    name = str(config["recipe"])
    out = Path(config["out"] or run_dir / f"{name}.safetensors").expanduser()
    if out.suffix != ".safetensors":
        raise FvlightError(f"out={out} is not a .safetensors file")
    task = import_module(f"fvlight.zoo.training.{name}").recipe(config, run_dir)
    began = time.monotonic()
    driven = fit(config, task, run_dir, None)
    if driven.interrupted:
        print(f"interrupted at step {task.global_step}; go on with the same command", file=sys.stderr)
        return 128 + driven.interrupted
    module = task.trained().eval()
    write_weights(module, out, {"recipe": name, **task.metadata()})
    figures = task.measure(run_dir)
    summary = {
        "command": command, "settings": config, "date": time.strftime("%Y-%m-%d"), "precision": driven.precision,
        "device": str(driven.device), "seconds": round(time.monotonic() - began), "losses": task.history,
        "figures": figures,
    }  # fmt: skip
    write_summary(run_dir, summary)
    text = card(out.name, task, summary)
    write_text(out.with_suffix(".md"), text)
    for key, value in figures.items():
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    print(out)
    return 0


def main(given: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for what the user can mend, and after a signal 128 and its number."""
    import hydra
    import lightning  # noqa: F401  (sets its loggers' levels, which are changed below)
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    arguments = list(sys.argv[1:] if given is None else given)
    statuses: list[int] = []
    errors: list[Exception] = []  # kept from Hydra, which would print lines of its own

    @hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")
    def application(config: Any) -> None:
        try:
            with quiet():
                settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
                command = shlex.join(["python", "scripts/train.py", *HydraConfig.get().overrides.task])
                statuses.append(run(settings, Path(HydraConfig.get().runtime.output_dir), command))
        except Exception as error:
            errors.append(error)

    argv = sys.argv
    sys.argv = ["train", *arguments]
    try:
        _require_experiment(arguments)
        with hydra_raises():
            application()
        if errors:
            raise errors[0]
    except KeyboardInterrupt:  # before the first step or after the last; between them `fit` saves, and returns
        print("train: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        line = _explain_key(error, arguments) or explain(error)
        if line is None:
            raise
        print(f"train: {line}", file=sys.stderr)
        return 2
    finally:
        sys.argv = argv
    return statuses[-1] if statuses else 0  # --help runs nothing


def _require_experiment(arguments: Sequence[str]) -> None:
    """Before Hydra, whose own message says nothing of what there is."""
    folder = CONFIG / "experiment"
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    chosen = [text.partition("=")[2] for text in arguments if text.startswith("experiment=")]
    if any(text.startswith("-") for text in arguments) and not chosen:
        return
    if not chosen or chosen[-1] not in names:
        raise unknown("experiment", chosen[-1] if chosen else "", names, "zoo/training/conf")


def _explain_key(error: Exception, arguments: Sequence[str]) -> str | None:
    """What Hydra's refusal of a key comes to; None for other errors."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    found = re.search(r"Could not override '([^']+)'", str(error))
    if not found:
        return None
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        chosen = [text for text in arguments if text.startswith("experiment=")]
        return str(unknown("setting", found[1], compose("config", overrides=chosen), chosen[-1]))


if __name__ == "__main__":
    sys.exit(main())
