"""All experiments of a paper: what is shared, what is run again, what the page says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fvlight import cli
from fvlight.command import reproduction
from fvlight.command.networks import conf_folder
from fvlight.command.reproduction import RECORD, checkpoint, chosen, experiments, main, make_ready, prepare
from fvlight.command.reproduction_page import figures, gather, load, render, without_folders
from fvlight.errors import FvlightError
from tests.helpers import handlers_taken_off, one_thread  # noqa: F401  (the second: a fixture for all tests)

ROOT = Path(__file__).resolve().parents[2]
CORNER = "fig9_corner"  # a single run, no weights to load
CELLS = "fig2_complex_cells"
SMALL = ["restarts=1", "solver.max_steps=4", "lambda_grid.values=[0,0.5]", "trainer=cpu", "images_per_problem=2"]


# -- which experiments -----------------------------------------------------------------------------------------


def test_experiments_are_those_of_the_folder_in_the_order_of_their_numbers() -> None:
    names = experiments()
    assert set(names) == {path.stem for path in (conf_folder() / "experiment" / "cadena2018").glob("*.yaml")}
    numbers = [int(name.partition("_")[0].removeprefix("fig")) for name in names]
    assert numbers == sorted(numbers)
    assert max(numbers) >= 10  # so that an order by letters would be another


def test_some_experiments_are_chosen_by_number_or_name() -> None:
    assert chosen(None) == experiments()
    assert chosen("fig9, fig2_complex_cells") == [CELLS, CORNER]
    assert chosen("fig1") == ["fig1_phase_curves"]  # and not figure 10
    with pytest.raises(FvlightError, match=r"'fig9_cornr' in --only: did you mean 'fig9_corner'"):
        chosen("fig9_cornr")


# -- settings and sharing --------------------------------------------------------------------------------------


def test_photographs_reach_only_networks_without_a_preset_norm(tmp_path: Path) -> None:
    images = tmp_path / "it's a folder"
    runs = prepare(tmp_path, "fig10_resnet50", ["units=2"], images)["runs"]
    given = {name: config["images"] for name, config in runs.items()}
    assert given == {name: None if "vgg" in name else str(images) for name in runs}
    record = prepare(tmp_path, CORNER, ["units=2"], images)
    assert record["overrides"] == ["experiment=cadena2018/fig9_corner", "units=2"]
    assert record["runs"][""]["images"] is None


def test_figures_of_the_same_units_have_runs_to_share(tmp_path: Path) -> None:
    """At one scale the layer of the trade-off is that of the control's trained network, and both are a gallery's."""
    typed = ["units=64", "trainer.precision=bf16-mixed"]
    whole = prepare(tmp_path, "fig4_tradeoff", typed, None)["runs"][""]
    controls = prepare(tmp_path, "fig5_random_weights", typed, None)["runs"]
    assert [name for name, config in controls.items() if config == whole] == ["trained"]
    assert whole["units"] == 64
    assert whole["trainer"]["precision"] == "bf16-mixed"


CONFIG = {"seed": 0, "units": 2, "solver": {"lr": 0.1, "max_steps": 1000}, "network": {"name": "a", "weights": "b"}}


def solve(folder: Path, complete: bool = True) -> bytes:
    """What a run leaves behind."""
    checkpoint(folder).parent.mkdir(parents=True, exist_ok=True)
    checkpoint(folder).write_bytes(folder.name.encode())
    (folder / "summary.json").write_text(json.dumps({"complete": complete}))
    return folder.name.encode()


def shared_with(out: Path, config: dict[str, Any], complete: bool = True) -> dict[str, str]:
    """What an experiment shares of another one, whose run was solved with `CONFIG`."""
    make_ready(out, CELLS, {"overrides": ["x=1"], "runs": {"one": CONFIG}, "shared": {}})
    solve(out / CELLS / "one", complete)
    make_ready(out, CORNER, {"overrides": ["x=1"], "runs": {"mine": config}, "shared": {}})
    return json.loads((out / CORNER / RECORD).read_text())["shared"]  # type: ignore[no-any-return]


def test_runs_of_the_same_configuration_are_shared(tmp_path: Path) -> None:
    assert shared_with(tmp_path, dict(reversed(CONFIG.items()))) == {"mine": f"{CELLS}/one"}
    theirs, mine = checkpoint(tmp_path / CELLS / "one"), checkpoint(tmp_path / CORNER / "mine")
    assert mine.samefile(theirs)
    assert OmegaConf.load(tmp_path / CORNER / ".hydra" / "overrides.yaml") == ["x=1"]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"units": None},
        {"solver": {"lr": 0.1, "max_steps": 999}},
        {"network": {"name": "a", "weights": "random"}},
        {"more": 1},
    ],
    ids=str,
)
def test_one_key_that_differs_prevents_it(changed: dict[str, Any], tmp_path: Path) -> None:
    assert shared_with(tmp_path, {**CONFIG, **changed}) == {}
    assert not checkpoint(tmp_path / CORNER / "mine").exists()


def test_what_is_not_complete_is_not_shared(tmp_path: Path) -> None:
    assert shared_with(tmp_path, CONFIG, complete=False) == {}


def test_a_run_that_has_begun_keeps_its_own_state(tmp_path: Path) -> None:
    solve(tmp_path / CORNER / "mine", complete=False)
    assert shared_with(tmp_path, CONFIG) == {}
    assert checkpoint(tmp_path / CORNER / "mine").read_bytes() == b"mine"


def test_where_links_are_not_possible_it_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert shared_with(tmp_path, CONFIG) == {"mine": f"{CELLS}/one"}
    assert checkpoint(tmp_path / CORNER / "mine").read_bytes() == b"one"


def test_an_experiment_is_not_gone_on_with_by_other_settings(tmp_path: Path) -> None:
    record = prepare(tmp_path, CORNER, ["units=2", *SMALL], None)
    make_ready(tmp_path, CORNER, {**record, "arguments": "--units 2"})
    again = prepare(tmp_path, CORNER, ["units=2", *SMALL, "checkpoint_seconds=0"], None)  # changes no image
    assert again["runs"] == record["runs"]
    with pytest.raises(FvlightError, match=r"fig9_corner was run with other settings \(those of --units 2"):
        prepare(tmp_path, CORNER, ["units=3", *SMALL], None)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / CORNER).mkdir()
    assert prepare(tmp_path, CORNER, [], None)["shared"] == {}
    (tmp_path / CORNER / "summary.json").write_text('{"complete": true}')
    with pytest.raises(FvlightError, match=f"{CORNER} was not made by this command"):
        prepare(tmp_path, CORNER, [], None)


# -- the order of things, with experiments that only pretend to run ---------------------------------------------

Outcomes = dict[str, tuple[int, str, list[int]]]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Run the command with experiments that end as told; its status, and the experiments that were really run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "configurations", lambda typed: {"": {"typed": typed, "layer": "l", "norm": 1}})
    monkeypatch.setattr(reproduction, "machine", lambda runs: "a machine")

    def call(outcomes: Outcomes, *arguments: str) -> tuple[int, list[str]]:
        called: list[str] = []

        def run(folder: Path) -> tuple[int, str, list[int]]:
            called.append(folder.name)
            outcome = outcomes.get(folder.name, (0, "", []))
            if outcome[0] == 0:
                (folder / "summary.json").write_text(json.dumps(summary(folder.name)))
            return outcome

        monkeypatch.setattr(reproduction, "run", run)
        return main(["--out", "out", "--only", "fig2,fig3,fig9", *arguments]), called

    return call


def summary(layer: str, **others: Any) -> dict[str, Any]:
    """The summary of a single run, as far as the page reads it."""
    run = {
        "network": "net", "layer": layer, "precision": "32-true", "seconds": 12.4, "version": "0.1.0",
        "complete": True, "warnings": [], "units": [{"unit": 0, "status": "converged"}], "claims": [],
    }  # fmt: skip
    return run | others


def page(folder: Path) -> str:
    return (folder / "REPRODUCTION.md").read_text(encoding="utf-8")


def test_a_failed_experiment_does_not_stop_the_others_and_alone_is_run_again(
    pretend: Callable[..., tuple[int, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [CELLS, "fig3_conv3_2", CORNER]
    status, called = pretend({names[1]: (2, "no weights in '/home/ada/weights/vgg.pth': give some", [])})
    assert (status, called) == (1, names)
    assert f"[2/3] {names[1]}: failed: no weights in '/home/ada/weights/vgg.pth': give some" in capsys.readouterr().out
    assert f"- `{names[1]}`: failed: no weights in '…/vgg.pth': give some\n" in page(tmp_path / "out")
    assert "ada" not in page(tmp_path / "out")

    assert pretend({names[1]: (-9, "half a li", [])}) == (1, [names[1]])
    assert f"- `{names[1]}`: failed: ended by signal 9\n" in page(tmp_path / "out")

    assert pretend({}) == (0, [names[1]])
    assert "failed" not in page(tmp_path / "out")
    assert pretend({}) == (0, [])
    assert capsys.readouterr().out.count("finished before") == 2 + 2 + 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_the_command_which_goes_on_there(
    number: int, status: int, pretend: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    assert pretend({"fig3_conv3_2": (130, "", [number])}) == (status, [CELLS, "fig3_conv3_2"])
    assert "- `fig3_conv3_2`: interrupted\n" in page(tmp_path / "out")
    assert f"- `{CORNER}`: not run\n" in page(tmp_path / "out")
    assert pretend({}) == (0, ["fig3_conv3_2", CORNER])


def test_other_settings_fail_one_by_one_and_leave_what_there_is(
    pretend: Callable[..., tuple[int, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend({})
    before = page(tmp_path / "out")
    assert pretend({}, "--units", "3") == (1, [])
    assert capsys.readouterr().out.count("was run with other settings (those of --units 64") == 3
    assert pretend({}, "--render-only") == (0, [])
    assert page(tmp_path / "out") == before


@pytest.mark.parametrize("typed", ["resume=there", "experiment=cadena2018/fig9_corner", "hydra.run.dir=x", "fig9"])
def test_settings_that_are_the_commands_own(typed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "out"), typed]) == 2
    assert capsys.readouterr().err.startswith(f"fvlight-reproduce: {typed}: write KEY=VALUE")
    assert not (tmp_path / "out").exists()


# -- the page ----------------------------------------------------------------------------------------------------

EXPECTED = """\
# Cadena et al. 2018, reproduced

Written by `fvlight-reproduce` from the files of its runs: no number in a table is typed by hand. \
What stands under *Findings* is.

- `fvlight-reproduce --units 2`, fvlight 0.1.0, a machine, 2026-01-02 to 2026-01-03: `fig2_two`, `fig10_three`
- `fvlight-reproduce --units 2`, fvlight 0.1.0, another, 2026-01-02: `fig4_part`

Of 4 claims 2 hold, 1 do not hold, 1 are undecided. 2 of 6 experiments ran.

Do not hold:

- Fig. 2: \\|a\\| exceeds b (0.1235; expected >= 1)

Undecided:

- Fig. 10: c (not measured; expected 60)

Not, or not wholly, in these figures:

- `fig1_one`: not run
- `fig3_half`: interrupted
- `fig4_part`: failed: became NaN
- `fig5_begun`: interrupted

## Fig. 1: `fig1_one`

*not run*

## Fig. 2: `fig2_two`

| claim | measured | expected | holds |
| --- | --- | --- | --- |
| \\|a\\| exceeds b | 0.1235 | >= 1 | **no** |
| two lines | 3 of 6 | half | yes |

| run | network | layer | units | lambdas | number type | seconds | warnings |
| --- | --- | --- | --- | --- | --- | --- | --- |
| – | net | conv | 2 | 3 (up to 20.48) | 32-true | 12 | 0 |

### Findings

It was the *norm*.

## Fig. 3: `fig3_half`

*interrupted*

## Fig. 4: `fig4_part`

*failed: became NaN*

| claim | measured | expected | holds |
| --- | --- | --- | --- |
| two lines | 3 of 6 | half | yes |

| run | network | layer | units | lambdas | number type | seconds | warnings |
| --- | --- | --- | --- | --- | --- | --- | --- |
| – | net | conv | 1 | – | bf16-mixed | 12 | 1 |

## Fig. 5: `fig5_begun`

*interrupted*

## Fig. 10: `fig10_three`

| claim | measured | expected | holds |
| --- | --- | --- | --- |
| c | not measured | 60 | undecided |

| run | network | layer | units | lambdas | number type | seconds | warnings |
| --- | --- | --- | --- | --- | --- | --- | --- |
| one | net | conv | 1 | – | 32-true | 12 | 0 |
| other | net | conv2 | 1 | – | 32-true | 12 (in fig2_two) | 0 |
"""


def write(folder: Path, kept: dict[str, Any] | None, record: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kept is not None:
        (folder / "summary.json").write_text(json.dumps(kept))
    if record is not None:
        common = {"arguments": "--units 2", "machine": "a machine", "date": "2026-01-02", "shared": {}, "runs": {}}
        (folder / RECORD).write_text(json.dumps(common | record))


def test_the_page(tmp_path: Path) -> None:
    sweep = [{"lambda": value, "status": "max_steps"} for value in (0, 0.02, 20.48)]
    no = {"claim": "|a| exceeds b", "measured": 0.12345, "expected": ">= 1", "holds": False}
    yes = {"claim": "two\nlines", "measured": "3 of 6", "expected": "half", "holds": True}
    undecided = {"claim": "c", "measured": None, "expected": 60, "holds": None}
    units = [{"unit": 0, "sweep": sweep}, {"unit": 1, "sweep": sweep}]
    write(tmp_path / "fig2_two", summary("conv", units=units, claims=[no, yes]), {})
    # stopped by Ctrl-C: a single run writes the claims about what there is, which are not counted
    stopped = [{"unit": 0, "sweep": [*sweep, {"lambda": 30, "status": "interrupted"}]}]
    write(tmp_path / "fig3_half", summary("conv", units=stopped, claims=[no], complete=False), {})
    bad = {"units": [{"unit": 0, "status": "nan"}], "complete": False, "warnings": ["became NaN"], "claims": [yes]}
    failed = {"failed": "became NaN", "machine": "another"}
    write(tmp_path / "fig4_part", summary("conv", precision="bf16-mixed", **bad), failed)
    write(tmp_path / "fig5_begun", None, {})
    three = tmp_path / "fig10_three"
    whole = {"version": "0.1.0", "complete": True, "runs": {"one": {}, "other": {}}, "claims": [undecided]}
    write(three, whole, {"date": "2026-01-03", "shared": {"other": "fig2_two"}})
    write(three / "one", summary("conv"))
    write(three / "other", summary("conv2"))
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "fig2.md").write_text("\nIt was the *norm*.\n")
    names = ["fig1_one", "fig2_two", "fig3_half", "fig4_part", "fig5_begun", "fig10_three"]
    kept = tmp_path / "page.json"
    found = gather(tmp_path, names, kept)
    assert render(found, tmp_path / "findings") == EXPECTED
    kept.write_text(figures(found))
    # another folder, with one experiment: it takes the place of what was kept, and one without figures does not
    other = tmp_path / "other"
    write(other / "fig1_one", summary("conv", claims=[yes]), {"machine": "new"})
    write(other / "fig2_two", summary("conv", claims=[yes]), {"machine": "new"})
    write(other / "fig10_three", None, {})
    more = gather(other, names, kept)
    assert more[0] == load(other, "fig1_one")
    assert more[1] == load(other, "fig2_two")
    assert [one.state for one in more] == ["ran", "ran", "not run", "failed: became NaN", "not run", "ran"]
    assert more[5] == found[5]
    assert render(gather(tmp_path / "none", names, kept), tmp_path / "none").count("| c | not measured |") == 1


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "fig1_one", "colour": 1}]', "[[]]", '{"a": 1}'])
def test_what_is_kept_is_that_of_a_page(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("whole")
    page.with_suffix(".json").write_text(text)
    assert main(["--out", str(tmp_path / "out"), "--report", str(page), "--render-only"]) == 2
    said = "page.json holds no figures of a page: move it away, or choose another --report"
    assert capsys.readouterr().err == f"fvlight-reproduce: {tmp_path}/{said}\n"
    assert page.read_text() == "whole"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("network.weights=/home/ada/vgg.pth", "network.weights=…/vgg.pth"),
        ("no '/data/x/y/photos': give images=FOLDER", "no '…/photos': give images=FOLDER"),
        ("weights=~/nets/a.pth", "weights=…/a.pth"),
        ("network=torchvision/vgg19 and/or 3 / 4 in 2 / 3", "network=torchvision/vgg19 and/or 3 / 4 in 2 / 3"),
        ("weights=nets/a.pth", "weights=nets/a.pth"),
        ("see https://hydra.cc/docs/intro", "see https://hydra.cc/docs/intro"),
    ],
)
def test_no_folder_of_a_machine_is_on_the_page(text: str, kept: str) -> None:
    assert without_folders(text) == kept


# -- processes ---------------------------------------------------------------------------------------------------


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_an_experiment_is_a_process_whose_last_line_says_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = 'echo "$@"; echo "fvlight: no such layer" >&2; echo; exit 2'
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", script))
    assert reproduction.run(tmp_path) == (2, "no such layer", [])
    lines = f"-m fvlight resume={tmp_path}\nfvlight: no such layer\n\n"
    assert (tmp_path / reproduction.LOG).read_text() == capfd.readouterr().out == lines


def test_a_signal_is_passed_on_once_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = 'while [ -z "$n" ]; do sleep 0.05; done; sleep 0.2'  # time for a second one, were there any
    script = f"trap 'echo caught; n=1' INT\nkill -INT {os.getpid()}\n{wait}\necho end\nexit 130"
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", script))
    assert reproduction.run(tmp_path) == (130, "end", [signal.SIGINT])
    assert (tmp_path / reproduction.LOG).read_text() == "caught\nend\n"


def images(folder: Path) -> bytes:
    return (folder / "images.safetensors").read_bytes()


def in_this_process(*arguments: str) -> int:
    with handlers_taken_off():
        return cli.main(list(arguments))


@pytest.mark.slow
def test_shared_runs_are_not_solved_again_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_environment: None
) -> None:
    """Figs. 1 and 2, with the same lambdas for once: of the second only what the first does not have is solved."""
    from fvlight.tasks import DiverseTask

    solved: list[str] = []
    solve_rows = DiverseTask._solve

    def counted(task: DiverseTask, rows: Any) -> None:
        solved.append(task.network_name)
        solve_rows(task, rows)

    monkeypatch.setattr(DiverseTask, "_solve", counted)
    monkeypatch.setattr(reproduction, "run", lambda folder: (in_this_process(f"resume={folder}"), "", []))
    options = ["--out", str(tmp_path / "out"), "--only", "fig1,fig2", *SMALL]
    assert main(options) == 0
    first, second = tmp_path / "out" / "fig1_phase_curves", tmp_path / "out" / CELLS
    assert sorted(solved) == ["energy_cell", "hubel_wiesel_cell", "simple_cell", "simple_cell"]
    shared = json.loads((second / RECORD).read_text())["shared"]
    assert shared == {name: f"{first.name}/{name}" for name in ("energy_cell", "hubel_wiesel_cell", "simple_cell")}
    alone = tmp_path / "alone"
    assert in_this_process(f"experiment=cadena2018/{CELLS}", "units=64", *SMALL, f"hydra.run.dir={alone}") == 0
    for name in ("energy_cell", "hubel_wiesel_cell", "simple_cell", "simple_cell_among_8"):
        assert images(second / name) == images(alone / name)
    claims = [json.loads((folder / "summary.json").read_text())["claims"] for folder in (second, alone)]
    assert claims[0] == claims[1]
    assert "(in fig1_phase_curves/energy_cell)" in page(tmp_path / "out")


@pytest.mark.slow
def test_ctrl_c_saves_writes_the_page_and_goes_on(tmp_path: Path, restored_environment: None) -> None:
    """The command in a process of its own, and its experiment in another one."""
    settings = ["solver.max_steps=600", "solver.inner_steps=2", "checkpoint_seconds=0", *SMALL[:1], *SMALL[2:]]
    out = tmp_path / "out folder"
    script = [sys.executable, str(ROOT / "scripts" / "reproduce.py")]
    command = [*script, "--out", str(out), "--only", "fig9", *settings]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: sums depend on the number

    def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            arguments, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    with start(command) as process:
        deadline = time.monotonic() + 300
        while not checkpoint(out / CORNER).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 130, printed
    assert "interrupted; the same command goes on with it" in printed
    assert f"- `{CORNER}`: interrupted\n" in page(out)
    part = json.loads((out / CORNER / "summary.json").read_text())
    assert not part["complete"]

    with start(command) as process:
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert "going on from" in printed
    assert f"1 of {len(experiments())} experiments ran." in page(out)
    assert str(tmp_path) not in page(out)
    alone = tmp_path / "alone"
    assert in_this_process("experiment=cadena2018/fig9_corner", "units=64", *settings, f"hydra.run.dir={alone}") == 0
    assert images(out / CORNER) == images(alone)
