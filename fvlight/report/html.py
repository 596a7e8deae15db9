"""The HTML page of a run: one file, images embedded, nothing fetched."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .attribution import write_attribution
from .captions import describe
from .decoder import write_decoder
from .examples import write_examples
from .figures import MAX_UNIT_FIGURES, FigureFile, write_figures
from .map_quality import write_map_quality
from .mosaic import figure_png
from .objectives import write_inversions, write_realizations
from .reconstruction import write_reconstructions
from .run_data import (
    MAX_LISTED,
    RunData,
    UnitResult,
    format_lambda,
    format_number,
    listed,
    parse_summary,
    read_summary,
    write_atomically,
)
from .table import DIVERSE, page_tables, unit_table
from .transformations import (
    description_cells,
    description_headings,
    read_curves,
    transformations_caption,
    transformations_figure,
    transformations_of,
)

# Figures of single units beyond this many bytes stay files: browsers open a page of some tens of megabytes.
EMBED_LIMIT = 32 * 2**20
TRANSFORMATIONS = "transformations.png"
KINDS = {
    "attribution": "Attribution",
    "map_quality": "Measures of attribution maps",
    "diverse": "Diverse feature visualization",
    "texture": "Shift-invariant textures",
    "realization": "Realizations of target objectives",
    "inverse": "Inverse feature visualization",
    "reconstruction": "Input reconstruction",
    "dataset_examples": "Dataset examples",
    "decoder": "Learned inversion network",
    "experiment": "Experiment",
}
WRITERS = {
    "attribution": write_attribution,
    "realization": write_realizations,
    "map_quality": write_map_quality,
    "inverse": write_inversions,
    "reconstruction": write_reconstructions,
    "dataset_examples": write_examples,
    "decoder": write_decoder,
}  # of figures, by kind of task
WITH_IMAGES = (
    "attribution",
    "images",
    "textures",
    "objectives",
    "examples",
)  # figures that show what images.safetensors holds
HOLDS = {True: ("holds", "yes"), False: ("does not hold", "no")}
TEXTURE_NAMES = {"norm": "root mean square of the crops' norms", "image_size": "size of a crop in pixels"}
NOT_SETTINGS = {"units", "runs", "experiment", "claims", "warnings", "complete", "command"}
SETTING_NAMES = {
    "task": "task",
    "network": "network",
    "layer": "layer of the units",
    "distance_layer": "layer of the distance",
    "convention": "convention of the objective",
    "threshold": "threshold on relative activation",
    "images_per_problem": "images per problem",
    "norm": "norm of the images",
    "image_size": "image size in pixels",
    "texture_size": "size of the textures in pixels",
    "places": "crops of a texture",
    "sigma_ratio": "size of a crop over sigma of its window",
    "features": "features of the objectives",
    "power": "power of the cosine",
    "floor": "least cosine",
    "parameterization": "parameterization",
    "aggregation": "aggregation of the maps",
    "worst": "weight of the least active crop",
    "crops_per_step": "crops looked at in a step",
    "whole_image": "units see the whole image",
    "position": "position of the units",
    "precision": "precision",
    "seed": "seed",
    "seconds": "run time in seconds",
    "version": "fvlight version",
}


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure of the page. `source` is a data URI, or None for a figure that is only named."""

    name: str
    heading: str
    caption: str
    source: str | None


@dataclass(frozen=True)
class Banner:
    """A statement about the state of the run; `level` is problem or note."""

    level: str
    text: str


def write_report(run_dir: Path) -> Path:
    """Write RUN/figures/*.png and RUN/report.html from RUN/summary.json and RUN/images.safetensors.

    A run without images.safetensors yields a report without images. Returns the path of the page.
    """
    run_dir = Path(run_dir)
    run = read_summary(run_dir)
    write = WRITERS.get(str(run.summary.get("task")), write_figures)
    written = [*write(run_dir, run), *_write_transformations(run_dir, run)]
    captions, caption_warnings = _read_captions(run_dir / "figures")
    main = [_embed(figure.path, *_texts(figure, run)) for figure in written if figure.kind != "unit"]
    main += [
        _embed(path, path.stem.replace("_", " ").capitalize(), captions.get(path.name, ""))
        for path in _extra_figures(run_dir / "figures", written)
    ]
    described = _described(run)
    single = _embed_units([figure for figure in written if figure.kind == "unit"], run)
    page = _template().render(
        summary=run.summary,
        kind=KINDS.get(str(run.summary.get("task")), str(run.summary.get("task"))),
        units_text=_units_text(run),
        banners=_banners(run, has_images=any(figure.kind in WITH_IMAGES for figure in written)),
        heading=_heading(run.summary),
        tables=page_tables(run.summary),
        title_of_none=unit_table(run.summary).title,
        description_headings=description_headings([unit for _, unit in described]),
        descriptions=_description_rows(described),
        claims=[_claim_row(claim) for claim in run.summary.get("claims") or ()],
        figures=main,
        unit_figures=single,
        units_without_figure=max(0, len(run.units) - MAX_UNIT_FIGURES) if single else 0,
        settings=_settings(run),
        warnings=[str(warning) for warning in run.summary.get("warnings") or ()] + caption_warnings,
        run_name=run_dir.resolve().name,
    )
    path = run_dir / "report.html"
    # Surrogates can enter through JSON escapes; they have no UTF-8 form and must not stop the report.
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def add_figure(run_dir: Path, name: str, png: bytes, caption: str) -> Path:
    """Put a further figure into RUN/figures, with the caption that `write_report` will print under it."""
    folder = run_dir / "figures"
    captions, _ = _read_captions(folder)
    write_atomically(folder / name, png)
    write_atomically(folder / "captions.json", json.dumps({**captions, name: caption}, ensure_ascii=False).encode())
    return folder / name


def _write_transformations(run_dir: Path, run: RunData) -> list[FigureFile]:
    """The curves of a run whose units are described."""
    curves = read_curves(run_dir, run)
    if not curves:
        return []
    path = run_dir / "figures" / TRANSFORMATIONS
    write_atomically(path, figure_png(transformations_figure(run, curves)))
    return [FigureFile(path, "transformations", caption=transformations_caption(run))]


def _texts(figure: FigureFile, run: RunData) -> tuple[str, str]:
    """Heading and caption."""
    return (figure.heading, figure.caption) if figure.heading else describe(figure, run)


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("fvlight.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _embed(path: Path, heading: str, caption: str) -> EmbeddedFigure:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return EmbeddedFigure(path.name, heading, caption, f"data:image/png;base64,{data}")


def _embed_units(figures: Sequence[FigureFile], run: RunData) -> list[EmbeddedFigure]:
    """Embed the figures of single units up to EMBED_LIMIT bytes; the others are only named."""
    embedded, total = [], 0
    for figure in figures:
        total += figure.path.stat().st_size
        heading, caption = describe(figure, run)
        if total <= EMBED_LIMIT:
            embedded.append(_embed(figure.path, heading, caption))
        else:
            embedded.append(EmbeddedFigure(figure.path.name, heading, caption, None))
    return embedded


def _extra_figures(folder: Path, written: Sequence[FigureFile]) -> list[Path]:
    """PNG files that others put into the folder; figures of an earlier report of the run are not extras."""
    own = {figure.path.name for figure in written} | {"tradeoff.png", "images.png", "textures.png", TRANSFORMATIONS}
    return sorted(
        path
        for path in folder.glob("*.png")
        if path.name not in own and not path.name.startswith((".", "unit_")) and path.is_file()
    )


def _read_captions(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Captions of extra figures by file name, and a warning if captions.json cannot be used."""
    path = folder / "captions.json"
    if not path.exists():
        return {}, []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return {}, [f"figures/captions.json could not be read ({error}); its figures have no caption."]
    if not isinstance(content, dict):
        return {}, ["figures/captions.json is not an object; its figures have no caption."]
    return {str(name): str(caption) for name, caption in content.items()}, []


def _banners(run: RunData, has_images: bool) -> list[Banner]:
    """What a reader must know before reading any number."""
    banners = []
    if run.summary.get("complete") is not True:
        banners.append(Banner("problem", "This run is incomplete. Numbers and images below are provisional."))
    problems = _problems(run)
    for status, level, meaning in (
        ("nan", "problem", "ended with values that are not finite (status nan)"),
        ("interrupted", "problem", "were interrupted"),
        ("max_steps", "note", "reached the limit on steps before they converged"),
    ):
        found = [name for name, word in problems if word == status]
        if found:
            banners.append(Banner(level, f"{len(found)} of {len(problems)} problems {meaning}: {listed(found)}."))
    kind = unit_table(run.summary)
    unchosen = [unit.unit for unit in run.units if unit.lambda_selected is None]
    if unchosen and kind is DIVERSE:
        banners.append(Banner("note", f"No λ was chosen for {_counted(unchosen)}."))
    banners += [Banner("note", remark) for remark in kind.remarks(run.summary.get("units") or ())]
    if not has_images and not run.summary.get("runs"):
        banners.append(Banner("note", "The run directory holds no images (images.safetensors)."))
    return banners


def _problems(run: RunData) -> list[tuple[str, str]]:
    """Name and status of every problem: one per lambda of a unit, or one per unit."""
    kind = unit_table(run.summary)
    if kind is DIVERSE:
        return [(f"unit {unit.unit} at λ = {point.lam:g}", point.status) for unit, point in run.problems]
    name = "unit {}" if kind.noun is None else "{}"
    units = run.summary.get("units") or ()
    return [(name.format(unit.get("unit")), str(unit.get("status"))) for unit in units]


def _counted(units: Sequence[str]) -> str:
    return f"unit {units[0]}" if len(units) == 1 else f"units {listed(units)}"


def _units_text(run: RunData) -> str:
    if run.summary.get("runs"):
        return "runs: " + ", ".join(run.summary["runs"])
    if not run.units:
        return "no units"
    names, noun = [unit.unit for unit in run.units], unit_table(run.summary).noun
    if noun is not None:
        return f"{len(names)} {noun}{'s' * (len(names) > 1)}: {listed(names)}"
    return _counted(names) if len(names) <= MAX_LISTED else f"{len(names)} units ({listed(names)})"


def _heading(summary: Mapping[str, Any]) -> str:
    if summary.get("experiment"):
        return str(summary["experiment"])
    return f"{summary.get('network')}, {summary.get('layer')}"


def _described(run: RunData) -> list[tuple[str | None, UnitResult]]:
    """All units that are described, with the name of the run's folder for an experiment of several runs."""
    parts = (run.summary.get("runs") or {}).items()
    units = [(None, unit) for unit in run.units] + [
        (str(name), unit) for name, part in parts for unit in parse_summary(part).units
    ]
    return [(name, unit) for name, unit in units if unit.description]


def _description_rows(described: Sequence[tuple[str | None, UnitResult]]) -> list[dict[str, Any]]:
    names = transformations_of([unit for _, unit in described])
    return [{"name": name, "unit": unit.unit, "cells": description_cells(unit, names)} for name, unit in described]


def _claim_row(claim: Mapping[str, Any]) -> dict[str, str]:
    holds = claim.get("holds")
    verdict, style = HOLDS[holds] if isinstance(holds, bool) else ("not decided", "open")
    return {
        "claim": str(claim.get("claim", "")),
        "source": str(claim.get("source", "")),
        "expected": _cell(claim.get("expected")),
        "measured": _cell(claim.get("measured")),
        "verdict": verdict,
        "style": style,
    }


def _cell(value: object) -> str:
    """A string as it is, a number in four digits, null as the word undefined."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return format_number(value, digits=4) if value is None or isinstance(value, float) else str(value)


def _settings(run: RunData) -> list[tuple[str, str]]:
    """Name and value of every setting in summary.json, known ones first, and the grid of lambda."""
    summary = run.summary
    keys = [key for key in SETTING_NAMES if key in summary]
    keys += [key for key in summary if key not in SETTING_NAMES and key not in NOT_SETTINGS]
    keys = [key for key in keys if not isinstance(summary[key], dict)]  # results of an experiment
    names = SETTING_NAMES | (TEXTURE_NAMES if summary.get("task") == "texture" else {})
    settings = [(names.get(key, key.replace("_", " ")), _setting(summary[key])) for key in keys]
    if run.lambdas:
        settings.insert(5, ("values of λ", ", ".join(format_lambda(lam) for lam in run.lambdas) or "none"))
    return settings


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return " \u00d7 ".join(f"{item:g}" for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
