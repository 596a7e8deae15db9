"""The files of a run: written beside the old ones and then put in their place."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fvlight.errors import FvlightError

SUMMARY, IMAGES, METRICS = "summary.json", "images.safetensors", "metrics.csv"
CURVES = "transformations.safetensors"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write`` fill a temporary file and put it at ``path`` in one step.

    Raises:
        FvlightError: the file can't be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # on the disk before it takes the old one's place
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # there may be none, or not even a folder that could hold it
            temporary.unlink()
        if not isinstance(error, OSError | RuntimeError | SafetensorError):  # torch and safetensors have their own
            raise
        below = error.__context__ if isinstance(error.__context__, OSError) else error  # of torch's, what befell it
        reason = getattr(below, "strerror", None) or str(error).partition("\n")[0]
        raise FvlightError(
            f"{str(path)!r} can't be written ({reason}): make room or choose another place with hydra.run.dir=DIR; "
            "what was there before is untouched"
        ) from error
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_atomically` of a text, in UTF-8."""
    return write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_summary(run_dir: Path, summary: dict[str, Any]) -> Path:
    """``summary.json``; numbers must be finite or None."""
    text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
    return write_text(run_dir / SUMMARY, text)


def write_images(run_dir: Path, images: Tensor, display: Tensor, **others: Tensor) -> Path:
    """``images.safetensors``: `images` float32 in input space, `display` uint8, both (U, L, n, C, H, W); and others."""
    return write_tensors(run_dir / IMAGES, {"images": images, "display": display, **others})


def write_curves(run_dir: Path, curves: dict[str, Tensor]) -> Path:
    """``transformations.safetensors``: what units answer to their transformed images, see `Description.tensors`."""
    return write_tensors(run_dir / CURVES, curves)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A safetensors file that others may read, too."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(path: Path) -> None:
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path)
        path.chmod(mode)  # safetensors' own file can be read by its owner alone

    return write_atomically(path, write)


def write_metrics(run_dir: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    """``metrics.csv``: one row per problem and block of solver steps."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_text(run_dir / METRICS, buffer.getvalue())
