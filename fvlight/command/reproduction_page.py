"""``REPRODUCTION.md`` from the files of the experiments' folders: numbers are copied, none is typed.

The figures of a page lie beside it as ``REPRODUCTION.json``. Experiments that a folder doesn't hold are taken from
there, so that one page can grow over several folders, machines and days.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fvlight.errors import FvlightError

RECORD = "reproduction.json"
VERDICTS = {True: "yes", False: "**no**", None: "undecided"}


@dataclass(frozen=True)
class Experiment:
    """What the page says of one experiment.

    Attributes:
        state: ``ran``, or what it is that the figures are not, or not wholly, there.
        origin: ``arguments`` of the command, ``version``, ``machine`` and ``date``; empty without figures.
        claims: each with ``claim``, ``measured``, ``expected``, ``holds``.
        runs: the row of each, by the heads of the table.
    """

    name: str
    state: str = "not run"
    origin: dict[str, str] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, str]] = field(default_factory=list)

    @property
    def number(self) -> str:
        """`5` of `fig5_random_weights`."""
        return self.name.partition("_")[0].removeprefix("fig")


def read_json(path: Path) -> Any:
    """A file's content, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def without_folders(text: str) -> str:
    """Absolute paths lose their folders: the page is made to be passed on."""
    return re.sub(r"(?<![\w.:/])~?(?:/[^\s/'\",;()]+)+/(?=[^\s/])", "…/", text)


def load(out: Path, name: str) -> Experiment:
    """An experiment's files. Of one that was interrupted the summary, if any, is of a part, and left out."""
    record, summary = read_json(out / name / RECORD), read_json(out / name / "summary.json")
    if record is None:
        return Experiment(name)
    if summary and any(status == "interrupted" for unit in summary.get("units") or () for status in _statuses(unit)):
        summary = None
    state = "ran" if summary and summary["complete"] else "interrupted"
    if "failed" in record:
        state = f"failed: {record['failed']}"
    if summary is None:
        return Experiment(name, state)
    origin = {"version": summary["version"], **{key: record[key] for key in ("arguments", "machine", "date")}}
    keys = ("claim", "measured", "expected", "holds")
    claims = [{key: claim[key] for key in keys} for claim in summary["claims"]]
    found = {run: read_json(out / name / run / "summary.json") for run in summary.get("runs") or {"": None}}
    rows = [_run_row(run, one, record["shared"].get(run)) for run, one in found.items() if one]
    return Experiment(name, state, origin, claims, rows)


def gather(out: Path, names: Sequence[str], kept: Path) -> list[Experiment]:
    """The experiments of a page: as they are in ``out``, or in the file ``kept`` where ``out`` has no figures of them.

    Raises:
        FvlightError: as `kept_figures`.
    """
    before, found = kept_figures(kept), [load(out, name) for name in names]
    return [one if one.origin else before.get(one.name, one) for one in found]


def kept_figures(kept: Path) -> dict[str, Experiment]:
    """The experiments in a page's file of figures, by name; none without a file.

    Raises:
        FvlightError: it is not one that this command has written.
    """
    try:
        return {one["name"]: Experiment(**one) for one in read_json(kept) or ()}
    except (ValueError, TypeError, KeyError) as error:
        raise FvlightError(f"{kept} holds no figures of a page: move it away, or choose another --report") from error


def figures(found: Sequence[Experiment]) -> str:
    """What `kept_figures` reads: the experiments that have figures."""
    return json.dumps([asdict(one) for one in found if one.origin], indent=1, ensure_ascii=False) + "\n"


def _statuses(unit: dict[str, Any]) -> Iterator[str]:
    """How the problems of a unit ended."""
    yield from (entry["status"] for entry in unit.get("sweep") or [unit])


def render(found: Sequence[Experiment], findings: Path) -> str:
    """The whole page; of each experiment ``findings/figN.md`` is included where there is one."""
    blocks = [
        "# Cadena et al. 2018, reproduced",
        "Written by `fvlight-reproduce` from the files of its runs: no number in a table is typed by hand. "
        "What stands under *Findings* is.",
        *_provenance(found), *_overview(found),
    ]  # fmt: skip
    for one in found:
        blocks += _section(one, findings / f"{one.name.partition('_')[0]}.md")
    return "\n\n".join(blocks) + "\n"


def _provenance(found: Sequence[Experiment]) -> Iterator[str]:
    """Command, version, machine and dates; an item for each such set that experiments were run with."""
    groups: dict[tuple[str, str, str], list[Experiment]] = {}
    for one in found:
        if one.origin:
            key = (one.origin["arguments"], one.origin["version"], one.origin["machine"])
            groups.setdefault(key, []).append(one)
    items = []
    for (arguments, version, machine), members in groups.items():
        dates = sorted({one.origin["date"] for one in members})
        names = "" if len(groups) == 1 else ": " + ", ".join(f"`{one.name}`" for one in members)
        when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
        items.append(f"- `fvlight-reproduce {arguments}`, fvlight {version}, {machine}, {when}{names}")
    if items:
        yield "\n".join(items)


def _overview(found: Sequence[Experiment]) -> Iterator[str]:
    """How many claims hold, and by name all that do not, that are undecided, and that are not there."""
    claims = [(one, claim) for one in found for claim in one.claims]
    count = {verdict: sum(claim["holds"] is verdict for _, claim in claims) for verdict in VERDICTS}
    yield (
        f"Of {len(claims)} claims {count[True]} hold, {count[False]} do not hold, {count[None]} are undecided. "
        f"{sum(one.state == 'ran' for one in found)} of {len(found)} experiments ran."
    )
    for verdict, words in ((False, "Do not hold:"), (None, "Undecided:")):
        if count[verdict]:
            items = [
                f"- Fig. {one.number}: {_cell(claim['claim'])} "
                f"({_cell(claim['measured'])}; expected {_cell(claim['expected'])})"
                for one, claim in claims
                if claim["holds"] is verdict
            ]
            yield from (words, "\n".join(items))
    if missing := [f"- `{one.name}`: {one.state}" for one in found if one.state != "ran"]:
        yield from ("Not, or not wholly, in these figures:", "\n".join(missing))


def _section(one: Experiment, finding: Path) -> Iterator[str]:
    yield f"## Fig. {one.number}: `{one.name}`"
    if one.state != "ran":
        yield f"*{one.state}*"
    if one.claims:
        keys = ("claim", "measured", "expected")
        rows = [[*(_cell(claim[key]) for key in keys), VERDICTS[claim["holds"]]] for claim in one.claims]
        yield _table([*keys, "holds"], rows)
    if one.runs:
        yield _table(list(one.runs[0]), [list(row.values()) for row in one.runs])
    if finding.is_file():
        yield from ("### Findings", finding.read_text(encoding="utf-8").strip())


def _run_row(name: str, run: dict[str, Any], source: str | None) -> dict[str, str]:
    lambdas = [point["lambda"] for point in run["units"][0].get("sweep") or ()]
    return {
        "run": name or "–",
        "network": run["network"],
        "layer": run["layer"],
        "units": str(len(run["units"])),
        "lambdas": f"{len(lambdas)} (up to {lambdas[-1]:g})" if lambdas else "–",
        "number type": run["precision"],
        "seconds": f"{run['seconds']:.0f}" + (f" (in {source})" if source else ""),
        "warnings": str(len(run["warnings"])),
    }


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def _cell(value: Any) -> str:
    """Text as a table's cell takes it; numbers to four digits."""
    if value is None:
        return "not measured"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
