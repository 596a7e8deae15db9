"""``REPRODUCTION.md`` from the files of the experiments' folders: numbers are copied, none is typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = "reproduction.json"
VERDICTS = {True: "yes", False: "**no**", None: "undecided"}


@dataclass(frozen=True)
class Experiment:
    """What one experiment left behind: ``record`` and ``summary`` are None where it never began or never ended."""

    name: str
    folder: Path
    record: dict[str, Any] | None
    summary: dict[str, Any] | None

    @property
    def number(self) -> str:
        """`5` of `fig5_random_weights`."""
        return self.name.partition("_")[0].removeprefix("fig")

    @property
    def state(self) -> str:
        if self.record is None:
            return "not run"
        if "failed" in self.record:
            return f"failed: {self.record['failed']}"
        return "ran" if self.summary and self.summary["complete"] else "interrupted"

    @property
    def claims(self) -> list[dict[str, Any]]:
        return self.summary["claims"] if self.summary else []

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """The summaries of its runs, by name."""
        if self.summary is None:
            return {}
        names = self.summary.get("runs") or {"": None}
        found = {name: read_json(self.folder / name / "summary.json") for name in names}
        return {name: summary for name, summary in found.items() if summary}


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's content, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def without_folders(text: str) -> str:
    """Absolute paths lose their folders: the page is made to be passed on."""
    return re.sub(r"(?<![\w.:/])~?(?:/[^\s/'\",;()]+)+/(?=[^\s/])", "…/", text)


def load(out: Path, name: str) -> Experiment:
    """An experiment's files. Of one that was interrupted the summary, if any, is of a part, and left out."""
    record, summary = read_json(out / name / RECORD), read_json(out / name / "summary.json")
    if summary and any(status == "interrupted" for unit in summary.get("units") or () for status in _statuses(unit)):
        summary = None
    return Experiment(name, out / name, record, summary if record else None)


def _statuses(unit: dict[str, Any]) -> Iterator[str]:
    """How the problems of a unit ended."""
    yield from (entry["status"] for entry in unit.get("sweep") or [unit])


def render(out: Path, names: Sequence[str], findings: Path) -> str:
    """The whole page; of each experiment ``findings/figN.md`` is included where there is one."""
    found = [load(out, name) for name in names]
    blocks = [
        "# Cadena et al. 2018, reproduced",
        "Written by `fvlight-reproduce` from the files of its runs: no number in a table is typed by hand. "
        "What stands under *Findings* is.",
        *_provenance(found), *_overview(found),
    ]  # fmt: skip
    for one in found:
        blocks += _section(one, findings / f"{one.name.partition('_')[0]}.md")
    return "\n\n".join(blocks) + "\n"


def _provenance(found: list[Experiment]) -> Iterator[str]:
    """Command, version, machine and dates; an item for each such set that experiments were run with."""
    groups: dict[tuple[str, str, str], list[Experiment]] = {}
    for one in found:
        if one.record and one.summary:
            key = (one.record["arguments"], one.summary["version"], one.record["machine"])
            groups.setdefault(key, []).append(one)
    items = []
    for (arguments, version, machine), members in groups.items():
        dates = sorted({one.record["date"] for one in members if one.record})
        names = "" if len(groups) == 1 else ": " + ", ".join(f"`{one.name}`" for one in members)
        when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
        items.append(f"- `fvlight-reproduce {arguments}`, fvlight {version}, {machine}, {when}{names}")
    if items:
        yield "\n".join(items)


def _overview(found: list[Experiment]) -> Iterator[str]:
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
        heads = ["run", "network", "layer", "units", "lambdas", "number type", "seconds", "warnings"]
        yield _table(heads, [_run_row(one, name, run) for name, run in one.runs.items()])
    if finding.is_file():
        yield from ("### Findings", finding.read_text(encoding="utf-8").strip())


def _run_row(one: Experiment, name: str, run: dict[str, Any]) -> list[str]:
    lambdas = [point["lambda"] for point in run["units"][0].get("sweep") or ()]
    source = (one.record or {})["shared"].get(name)
    return [
        name or "–", run["network"], run["layer"], str(len(run["units"])),
        f"{len(lambdas)} (up to {lambdas[-1]:g})" if lambdas else "–",
        run["precision"], f"{run['seconds']:.0f}" + (f" (in {source})" if source else ""), str(len(run["warnings"])),
    ]  # fmt: skip


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def _cell(value: Any) -> str:
    """Text as a table's cell takes it; numbers to four digits."""
    if value is None:
        return "not measured"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
