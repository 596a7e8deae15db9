"""``fvlight-reproduce``: all experiments of Cadena et al. 2018 at one scale, and one page of their claims.

Each experiment runs in a process of its own, in OUT/NAME. Its folder is first made to look like that of an interrupted
run, with the checkpoints of runs that another experiment has already solved linked in: so a fresh experiment, one that
was broken off and one that shares its runs all go on in the same way, by ``fvlight resume=FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fvlight.cli import USAGE_ERROR, configurations, explain, quoted
from fvlight.command.networks import conf_folder
from fvlight.command.reproduction_page import (
    RECORD,
    figures,
    gather,
    kept_figures,
    read_json,
    render,
    without_folders,
)
from fvlight.errors import FvlightError, unknown
from fvlight.results import SUMMARY, write_atomically, write_text

PAPER = "cadena2018"
LOG = "output.log"
# what changes nothing that a run computes
NOT_COMPARED = {"claims", "runs", "resume", "checkpoint_seconds", "checkpoint_steps", "trusted"}
RESERVED = ("experiment=", "resume=", "hydra.")
Settings = dict[str, dict[str, Any]]  # the configurations of an experiment's runs


def experiments() -> list[str]:
    """The paper's experiments in the order of its figures."""
    names = [path.stem for path in (conf_folder() / "experiment" / PAPER).glob("*.yaml")]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def chosen(only: str | None) -> list[str]:
    """The experiments that ``fig1,fig10_resnet50`` names, all where nothing does.

    Raises:
        FvlightError: there is no such experiment.
    """
    known = experiments()
    wanted = [text.strip() for text in (only or "").split(",") if text.strip()]
    for text in wanted:
        if not any(text in (name, name.partition("_")[0]) for name in known):
            raise unknown("experiment", text, known, "--only")
    return [name for name in known if not wanted or {name, name.partition("_")[0]} & set(wanted)]


# -- a folder that `fvlight resume=` goes on with --------------------------------------------------------------


def prepare(out: Path, name: str, typed: Sequence[str], images: Path | None) -> dict[str, Any]:
    """The record of an experiment, from its folder or new; nothing is written.

    Photographs are only for experiments with a network that has no preset norm: they would replace the others' presets.

    Raises:
        FvlightError: the folder holds something else, or the same experiment with other settings.
    """
    overrides = [f"experiment={PAPER}/{name}", *typed]
    runs = _compared(configurations(overrides))
    if images and any(_needs_photographs(config) for config in runs.values()):
        overrides.append(f"images={quoted(images)}")
        runs = _compared(configurations(overrides))
    folder = out / name
    record = read_json(folder / RECORD)
    if record is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise FvlightError(f"{folder} was not made by this command: choose another --out, or move it away")
        return {"overrides": overrides, "runs": runs, "shared": {}}
    if record["runs"] != runs:
        raise FvlightError(
            f"{folder} was run with other settings (those of {record['arguments']}, or the experiment has changed "
            "since): choose another --out, or delete the folder"
        )
    return record


def _compared(runs: Settings) -> Settings:
    """The configurations as they are recorded and compared."""
    kept = {name: {key: config[key] for key in config if key not in NOT_COMPARED} for name, config in runs.items()}
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def _needs_photographs(config: dict[str, Any]) -> bool:
    """Whether the norm of a run's images is to be measured: it is not given, and the network has no preset of it."""
    return config.get("norm") is None and config["layer"] not in (config["network"]["study"].get("norms") or {})


def make_ready(out: Path, name: str, record: dict[str, Any]) -> None:
    """Write the record and what `resume` needs, and link in the checkpoints of runs that are solved elsewhere."""
    from omegaconf import OmegaConf

    folder = out / name
    record.pop("failed", None)
    record["machine"], record["date"] = machine(record["runs"]), datetime.now(timezone.utc).date().isoformat()
    write_record(folder, record)
    overrides = folder / ".hydra" / "overrides.yaml"
    if not overrides.exists():
        write_atomically(overrides, lambda path: OmegaConf.save(OmegaConf.create(record["overrides"]), path))
    for run, config in record["runs"].items():
        source = solved(out, config)
        if source is not None and not checkpoint(folder / run).exists():
            record["shared"][run] = source.relative_to(out).as_posix()
            write_record(folder, record)
            write_atomically(checkpoint(folder / run), partial(_link, source))


def solved(out: Path, config: dict[str, Any]) -> Path | None:
    """The folder of a complete run of exactly this configuration that was computed there, not shared itself."""
    for name in experiments():
        record = read_json(out / name / RECORD) or {"runs": {}}
        for run, theirs in record["runs"].items():
            folder = out / name / run
            if theirs == config and run not in record["shared"] and complete(folder) and checkpoint(folder).exists():
                return folder
    return None


def checkpoint(run_dir: Path) -> Path:
    """Where a run keeps its state."""
    from fvlight.training.checkpoints import FILE_NAME  # Lightning takes seconds

    return run_dir / "checkpoints" / FILE_NAME


def _link(source: Path, path: Path) -> None:
    """The same file under another name (a run never writes into it, but replaces it), or a copy where that can't be."""
    try:
        os.link(checkpoint(source), path)
    except OSError:
        shutil.copyfile(checkpoint(source), path)


def complete(run_dir: Path) -> bool:
    """Whether a run or an experiment was solved to its end."""
    return bool((read_json(run_dir / SUMMARY) or {}).get("complete"))


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """``reproduction.json``: the settings of an experiment's runs, where and when they were computed."""
    write_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False))


# -- running ---------------------------------------------------------------------------------------------------


def run(folder: Path) -> tuple[int, str, list[int]]:
    """Go on with an experiment in a process of its own: exit status, its last line, the signals that came meanwhile.

    SIGINT and SIGTERM are passed on: the experiment saves its state and ends, and the page can still be written.
    """
    received: list[int] = []
    early: list[int] = []  # before there was a process
    process: subprocess.Popen[str] | None = None

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    root = str(Path(__file__).resolve().parents[2])  # the same fvlight as this one, installed or not
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "fvlight", f"resume={folder}"], env=environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C would reach it twice, which means "at once"
        )  # fmt: skip
        last = ""
        with process, (folder / LOG).open("a", encoding="utf-8") as log:
            for number in early:
                process.send_signal(number)
            for line in process.stdout or ():
                print(line, end="", flush=True)
                log.write(line)
                last = line.strip() or last
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return process.returncode, last.removeprefix("fvlight: "), received


def reproduce(out: Path, names: Sequence[str], typed: Sequence[str], images: Path | None, arguments: str) -> int:
    """Run experiments one after the other; the exit status: 0, 1 if one failed, 130 after Ctrl-C."""
    status = 0
    for i, name in enumerate(names, 1):
        label, began = f"[{i}/{len(names)}] {name}", time.monotonic()
        try:
            record = prepare(out, name, typed, images)
            if complete(out / name):
                print(f"{label}: finished before", flush=True)
                continue
            record["arguments"] = arguments
            make_ready(out, name, record)
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            print(f"{label}: failed: {line}", flush=True)
            status = 1
            continue
        shared = "".join(f"\n    {run or name}: solved in {source}" for run, source in record["shared"].items())
        print(f"{label}{shared}", flush=True)
        code, last, received = run(out / name)
        if received or code >= 128:
            print(f"{label}: interrupted; the same command goes on with it", flush=True)
            return 128 + received[0] if received else code
        outcome = "done"
        if code:
            reason = (last if code > 0 else f"ended by signal {-code}") or f"exit status {code}"
            outcome, status = f"failed: {reason}", 1
            write_record(out / name, {**record, "failed": without_folders(reason)})
        print(f"{label}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    return status


def machine(runs: Settings) -> str:
    """Processor, cores, GPU where runs used it, and torch; nothing that names the machine itself."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [names[0] if names else platform.processor() or platform.machine(), f"{cores} cores"]
    if torch.cuda.is_available() and any(config["trainer"]["accelerator"] != "cpu" for config in runs.values()):
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {version('torch')}"])


# -- the command -----------------------------------------------------------------------------------------------


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fvlight-reproduce", description="Run all experiments of Cadena et al. 2018.")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the experiments' folders")
    parser.add_argument("--units", type=int, default=64, help="units per layer, at most (64; 256 are whole layers)")
    parser.add_argument("--only", help="some experiments: fig1,fig10")
    parser.add_argument("--precision", help="number type inside the networks: 32-true or bf16-mixed")
    parser.add_argument("--images", type=Path, help="photographs, for networks without a published norm of patches")
    parser.add_argument("--report", type=Path, help="the page to write (OUT/REPRODUCTION.md)")
    parser.add_argument("--findings", type=Path, default=Path("docs/findings"), help="folder of hand-written figN.md")
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the page")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings for all runs, or ~runs.NAME")
    return parser.parse_intermixed_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 if an experiment failed, 2 for what the user can mend, 130 after Ctrl-C."""
    options = parse(given)
    out = options.out.expanduser().resolve()
    try:
        for text in options.overrides:
            if text.startswith(RESERVED) or not ("=" in text or text.startswith("~")):
                raise FvlightError(f"{text}: write KEY=VALUE, and choose experiments with --only, folders with --out")
        names = chosen(options.only)
        images = options.images and options.images.expanduser().resolve()
        typed = [f"units={options.units}"]
        typed += [f"trainer.precision={options.precision}"] if options.precision else []
        shown = [f"--units {options.units}", f"--precision {options.precision}" if options.precision else ""]
        shown += ["--images FOLDER" if images else "", *(without_folders(text) for text in options.overrides)]
        page = (options.report or out / "REPRODUCTION.md").expanduser().resolve()
        kept, status = page.with_suffix(".json"), 0
        kept_figures(kept)  # what is wrong with it is said before hours of work
        try:
            if not options.render_only:
                arguments = " ".join(filter(None, shown))
                status = reproduce(out, names, [*typed, *options.overrides], images, arguments)
        except KeyboardInterrupt:
            status = 130
        finally:
            found = gather(out, experiments(), kept)
            write_text(kept, figures(found))
            write_text(page, render(found, options.findings.expanduser()))
            print(page)
        return status
    except FvlightError as error:
        print(f"fvlight-reproduce: {error}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
