"""Headings and captions of the report's own figures."""

from .figures import MAX_COLOURED_UNITS, MAX_OVERVIEW_UNITS, FigureFile
from .run_data import RunData, finite


def describe(figure: FigureFile, run: RunData) -> tuple[str, str]:
    """Heading and caption of one of the report's own figures."""
    if figure.kind == "textures":
        return "Textures and the activations of their crops", figure.caption
    if figure.kind == "transformations":
        return "What transformations leave of the activation", figure.caption
    if figure.kind == "tradeoff":
        return "Trade-off between activation and diversity", _tradeoff_caption(figure, run)
    total = finite(run.summary.get("images_per_problem"))
    of_all = f" The first {figure.columns} of {total:g} images are shown." if total and total > figure.columns else ""
    drawn = (
        f"Images are reduced by a factor of {figure.reduced} (mean over blocks)."
        if figure.reduced > 1
        else "Each pixel of an image is drawn as a square, without interpolation."
    )
    if figure.kind == "images":
        units = min(len(run.units), MAX_OVERVIEW_UNITS)
        which = f"The first {units} of {len(run.units)} units." if units < len(run.units) else "All units."
        return "Images at three values of λ", (
            f"{which} Rows of a unit: images at λ = 0 (drive the unit only), at the chosen λ, and at "
            "the largest λ of the grid; the images of a row were optimised together. Rel. activation is the "
            f"mean activation of the row's images divided by that at λ = 0.{of_all} Grey cells: no λ was "
            f"chosen, or no activation was measured. {drawn}"
        )
    return f"Unit {figure.unit}: all values of λ", (
        "One row per λ, in the order of the sweep; the images of a row were optimised together. Below each "
        "image: the activation of the unit for that image. Min. distance is the smallest distance between "
        f"two images of the row, measured at {run.summary.get('distance_layer')}. The tinted row is the "
        "chosen λ. Words in red below a row's label name the state in which an optimisation ended without "
        f"converging; grey cells: no activation was measured.{of_all} {drawn}"
    )


def _tradeoff_caption(figure: FigureFile, run: RunData) -> str:
    layer = run.summary.get("distance_layer")
    distance = f"the smallest distance between two images of a problem, measured at {layer}"
    relative = ", divided by its value at λ = 0 (diversity gain)" if figure.quantity == "diversity_gain" else ""
    lines = (
        "One line per unit; large dots mark the chosen λ, open dots problems that did not converge."
        if len(run.units) <= MAX_COLOURED_UNITS
        else "Thin lines: single units; thick line: their median at each λ; dots: the λ chosen for a unit."
    )
    chosen = ""
    if run.threshold is not None:
        chosen = (
            f" The chosen λ is the largest whose mean activation stays above {run.threshold:g} times that at "
            "λ = 0 (dashed line)."
        )
    return (
        "(a) Mean activation over the images of a problem, divided by that at λ = 0. "
        f"(b) Diversity: {distance}{relative}. Ticks mark the values of the grid; λ = 0 is drawn left of the "
        f"smallest positive value, the rest of the axis is logarithmic. {lines}{chosen} Undefined "
        "values leave a gap."
    )
