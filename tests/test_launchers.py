"""Sweeps by Hydra's launchers, and the other processes of a run: who starts them, what they are told, how they end."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from lightning.fabric.plugins.environments import LightningEnvironment

import fvlight
from fvlight import application, cli
from fvlight.command.processes import FOLLOW, JobResult, conclude_sweep, leads, require_one_folder, results, swept
from fvlight.errors import FvlightError
from fvlight.tasks import DiverseTask
from fvlight.training import launching
from fvlight.training.launching import CommandLauncher, others_by
from tests.helpers import called, no_handlers, one_thread  # noqa: F401  (fixtures; the last is for all tests)

SMALL = ["restarts=1", "images_per_problem=2", "lambda_grid.values=[0,1]", "solver.max_steps=3", "trainer=cpu"]
SEVERAL = [*SMALL[1:3], "restarts=2", "solver.max_steps=40", "solver.inner_steps=4", "describe=false", "trainer=cpu"]
ODD = 'it\'s "a=b", c(ü)\\'
RANKS = ["RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME"]
Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:  # noqa: F811
    """A folder of the test's own, and no other processes."""
    monkeypatch.chdir(tmp_path)
    for name in (*RANKS, cli.FULL_ERROR):
        monkeypatch.delenv(name, raising=False)
    yield
    results.clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """See `called`."""
    return lambda *arguments: called(capsys, *arguments)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


# -- the jobs of a sweep ---------------------------------------------------------------------------------------


def test_a_result_notes_itself_where_it_is_unpickled() -> None:
    job = JobResult(3, "seed=1", "sweep/3", 2, "no such unit", ValueError("stays there"))
    packed = pickle.dumps(job)
    results.clear()
    again = pickle.loads(packed)
    assert results == {3: again}
    assert (again.name, again.line, again.status, again.error) == ("job 3 (seed=1)", "no such unit", 2, None)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_a_job_s_ranks_the_one_that_failed_counts(order: tuple[int, int]) -> None:
    ranks = [(0, ""), (2, "disk full")]
    for rank in order:
        JobResult(0, "", "sweep/0", *ranks[rank])
    assert results[0].line == "disk full"


def test_the_end_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert conclude_sweep() == 0
    JobResult(10, "seed=10", "s/10", 0)
    JobResult(2, "seed=2", "s/2", 143)
    assert conclude_sweep() == 143
    assert capsys.readouterr().out == "job 2 (seed=2): interrupted, s/2\njob 10 (seed=10): finished, s/10\n"
    JobResult(3, "seed=3", "s/3", 2, "no such unit")
    with pytest.raises(FvlightError, match=r"job 3 \(seed=3\) in s/3: no such unit$"):
        conclude_sweep()
    JobResult(1, "seed=1", "s/1", 1, "Traceback: a defect")
    with pytest.raises(RuntimeError, match=r"job 1 .*: a defect; 1 more of 4 jobs failed") as caught:
        conclude_sweep()
    assert not isinstance(caught.value, FvlightError)


def test_the_settings_with_several_values() -> None:
    given = ["-m", "seed=1,2", "unit=[1,2]", "+extra=range(1,3)", "~gone", "name='a,b'", "network=x,y"]
    assert swept(given) == ["seed", "+extra", "network"]


def test_a_signal_ends_the_whole_sweep(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block = DiverseTask.run_block

    def interrupted(task: DiverseTask) -> None:
        run_block(task)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(DiverseTask, "run_block", interrupted)
    status, output, _ = run("-m", "seed=0,1", *SMALL, "solver.inner_steps=1", "hydra.sweep.dir=sweep")
    assert status == 130
    assert summary(tmp_path / "sweep" / "0")["complete"] is False
    assert not (tmp_path / "sweep" / "1" / "summary.json").exists()
    assert output.count(": interrupted, ") == 2


@pytest.mark.parametrize("given", ["trainer.strategy=ddp", "trainer.strategy=problems", "trainer.strategy=auto"])
def test_processes_by_the_command_line_are_refused_in_a_sweep(
    given: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "run", lambda *_: pytest.fail("it has begun"))
    status, _, errors = run("-m", "seed=0,1", *SMALL, given, "trainer.devices=2", "hydra.sweep.dir=sweep")
    assert status == 2
    assert len(errors) == 1, errors
    for word in (given, "job 0 (seed=0)", "problems_fork", "hydra/launcher=joblib"):
        assert word in errors[0]


@pytest.mark.parametrize(
    ("given", "outside"),
    [
        (["trainer.devices=1", "trainer.strategy=ddp"], False),
        (["trainer.devices=2", "trainer.strategy=problems_fork"], False),
        (["trainer.devices=2", "trainer.strategy=problems"], True),
        (["trainer.devices=nonsense"], False),  # for the run itself to complain of
    ],
)
def test_others_are_let_through(given: list[str], outside: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Through(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Through

    if outside:  # as torchrun does
        for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(application, "run", stop)
    status, _, errors = run("-m", "seed=0,1", *SMALL, *given, "hydra.sweep.dir=sweep")
    assert status == 1
    assert Through.__name__ in errors[-1] + "".join(errors)


# -- who is who ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, False),  # the first of the second machine
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, False),
    ],
)
def test_who_leads(variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert leads() is wanted


OUTSIDE = [{"WORLD_SIZE": "2", "RANK": "1"}, {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "fvlight"}]


@pytest.mark.parametrize("variables", OUTSIDE, ids=["torchrun", "srun"])
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["seed=1"], "hydra.run.dir=DIR"),
        (["seed=1", "resume=auto"], "hydra.run.dir=DIR"),
        (["hydra.run.dir=out/${now:%H}"], "hydra.run.dir=DIR"),
        (["hydra.run.dir=out", "-m", "seed=1,2"], "hydra.sweep.dir=DIR"),
        (["hydra.run.dir=out"], None),
        (["hydra.run.dir=out", "resume=auto"], None),
        (["resume=out"], None),
        (["-m", "seed=1,2", "hydra.sweep.dir=out"], None),
    ],
)
def test_processes_agree_on_the_folder(
    variables: dict[str, str], given: list[str], missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_one_folder(given)  # of a process alone nothing is asked
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if missing is None:
        require_one_folder(given)
    else:
        with pytest.raises(FvlightError, match=f"2 processes.*{missing}"):
            require_one_folder(given)


def test_without_a_folder_nothing_begins(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, errors = run(*SMALL)
    assert (status, len(errors)) == (2, 1)
    assert not list(tmp_path.iterdir())
    assert run("--list-networks", "v1*")[0] == 0  # asks for no folder


def test_an_interactive_allocation_is_no_run_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    require_one_folder(["seed=1"])


# -- the command for another rank ------------------------------------------------------------------------------


class Seen(Exception):
    """Enough of a run has been seen."""


def look(run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[dict[str, Any], Path, list[str]]:
    """The settings and the directory that a run gets, and the command by which it would start other ranks."""
    found: list[Any] = []

    def stop(settings: dict[str, Any], run_dir: Path, *_: Any) -> None:
        found.extend([settings, run_dir, launching._command])
        raise Seen

    with monkeypatch.context() as patch:
        patch.setattr(application, "run", stop)
        assert run(*arguments)[0] == 1
    settings, run_dir, command = found
    return settings, run_dir, command


@pytest.mark.parametrize("resumed", [False, True])
def test_other_ranks_get_the_same_run(resumed: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ["~solver.eps", "+trainer.note='a, \"b\" (c=d)'", "lambda_grid.values=[0,1]"]
    first = look(run, monkeypatch, *odd, f"hydra.run.dir={cli.quoted(tmp_path / ODD)}")
    if resumed:
        first = look(run, monkeypatch, f"resume={cli.quoted(tmp_path / ODD)}", "seed=3")
        assert first[0]["seed"] == 3
    record = tmp_path / ODD / ".hydra"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in record.iterdir()}
    settings, run_dir, command = first
    assert run_dir == tmp_path / ODD
    assert command[:3] == [sys.executable, "-m", "fvlight"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    again = look(run, monkeypatch, *command[3:])
    assert again[:2] == (settings, run_dir)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in record.iterdir()} == before


def test_the_time_in_the_folder_s_name_is_rank_0_s(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_dir, command = look(run, monkeypatch, *SMALL, "hydra.run.dir=out/${now:%f}")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert look(run, monkeypatch, *command[3:])[1] == run_dir


def launcher(processes: int) -> CommandLauncher:
    return CommandLauncher(LightningEnvironment(), processes, 1)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def start_ranks(processes: int, text: str, started: list[int], error: Exception | None = None) -> None:
    """Start the other ranks, note their numbers, and end at once."""
    with others_by(script(text)):
        launcher(processes)._call_children_scripts()
        started.extend(process.pid for process in launching._started)
        assert all(alive(pid) for pid in started)
        if error is not None:
            raise error


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_other_ranks_are_started_and_waited_for(tmp_path: Path) -> None:
    environment = dict(os.environ)
    write = "import os, time; time.sleep(0.3); open(os.environ['LOCAL_RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    with others_by(script(write)):
        launcher(3)._call_children_scripts()
        assert os.environ["LOCAL_RANK"] == "0"
        assert len(launching._started) == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"1": "3", "2": "3"}
    assert dict(os.environ) == environment
    assert not launching._started


@pytest.mark.parametrize(
    ("text", "words"), [("import sys; sys.exit(3)", "status 3"), ("import time; time.sleep(60)", "did not end")]
)
def test_another_rank_fails(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "LAST", 1.0)
    started: list[int] = []
    with pytest.raises(FvlightError, match=f"process 1 .*{words}"):
        start_ranks(2, text, started)
    assert len(started) == 1
    assert not any(alive(pid) for pid in started)


def test_after_an_error_no_rank_is_left() -> None:
    started: list[int] = []
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="broken"):
        start_ranks(3, "import time; time.sleep(60)", started, RuntimeError("broken"))
    assert time.monotonic() - began < 10
    assert len(started) == 2
    assert not any(alive(pid) for pid in started)


def test_a_rank_that_only_follows_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = SimpleNamespace(
        summary={"task": "diverse", "claims": [{"holds": None, "claim": "c", "measured": 1, "expected": 1}]},
        report=tmp_path / "report.html", interrupted=0, nan={},
    )  # fmt: skip
    monkeypatch.setattr(application, "run", lambda *_: done)
    monkeypatch.setattr("fvlight.report.print_summary_table", lambda *_: print("table"))
    for rank, words in (("0", ["table", "undecided: c"]), ("1", [])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert cli.main([FOLLOW, *SMALL, f"hydra.run.dir=out{rank}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if any(line.startswith(word) for word in words)] == lines
        assert len(lines) == len(words)


def documented() -> list[list[str]]:
    """The arguments of the commands in docs/cluster.md."""
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition("fvlight ")[2]) for line in lines if " unit=" in line]


@pytest.mark.parametrize("arguments", documented(), ids=lambda given: given[0])
def test_the_documented_commands_are_understood(arguments: list[str]) -> None:
    for launcher in ("joblib", "submitit_slurm"):
        if f"hydra/launcher={launcher}" in arguments:
            needs(launcher)
    plain = [text for text in arguments if text != "-m" and text.partition("=")[0] not in swept(arguments)]
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        config = compose(cli.CONFIG, overrides=plain, return_hydra_config=True)
    assert config.network.name == "vgg19"
    assert config.hydra.run.dir


# -- as users do -----------------------------------------------------------------------------------------------


def start(*arguments: str, module: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(Path(fvlight.__file__).parents[1]), "OMP_NUM_THREADS": "1", **variables
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", *module, "fvlight", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str, list[str]]:
    """Exit status, standard output, lines of standard error; nothing that the process has started is left."""
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors.splitlines()


def needs(launcher: str) -> None:
    module = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if find_spec("hydra_plugins") is None or find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install fvlight[cluster]")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_jobs_in_processes_of_their_own(name: str, tmp_path: Path) -> None:
    needs(name)
    status, output, errors = finish(
        start("-m", f"hydra/launcher={name}", "threshold=0.5,2,0.6", *SMALL, "hydra.sweep.dir=sweep")
    )
    sweep = tmp_path / "sweep"
    assert status == 2
    assert errors == [f"fvlight: job 1 (threshold=2) in {sweep}/1: threshold=2.0: a share of the activation, in (0, 1]"]
    assert output.splitlines()[-3:] == [
        f"job 0 (threshold=0.5): finished, {sweep}/0",
        f"job 1 (threshold=2): failed, {sweep}/1",
        f"job 2 (threshold=0.6): finished, {sweep}/2",
    ]
    for number, threshold in ((0, 0.5), (2, 0.6)):
        assert summary(sweep / str(number))["threshold"] == threshold


@pytest.mark.slow
def test_a_job_that_submitit_puts_back_goes_on(tmp_path: Path) -> None:
    """A preempted job (SIGUSR2) is called again with the same arguments, and finds its checkpoint."""
    needs("submitit_local")
    settings = [*SEVERAL, "solver.max_steps=400", "solver.patience=400", "checkpoint_seconds=0"]
    process = start("-m", "hydra/launcher=submitit_local", "seed=3", *settings, "hydra.sweep.dir=sweep")
    sweep, checkpoint = tmp_path / "sweep", tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt"
    try:
        end = time.monotonic() + 120
        while not checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        (controller,) = [path.name for path in (sweep / ".submitit").iterdir() if path.name.isdigit()]
        (job,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(job), signal.SIGUSR2)
        status, output, errors = finish(process)
    finally:
        if process.poll() is None:
            finish(process, 0.1)
    assert (status, errors) == (0, [])
    log = next((sweep / ".submitit" / controller).glob("*_log.err")).read_text()
    assert "preempted" in log
    assert f"going on from {checkpoint}" in log
    assert finish(start(*settings, "seed=3", "hydra.run.dir=plain"))[0] == 0
    plain = tmp_path / "plain"
    assert (sweep / "0" / "images.safetensors").read_bytes() == (plain / "images.safetensors").read_bytes()


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, to compare with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    status, _, errors = finish(start(*SEVERAL, f"hydra.run.dir={folder}"))
    assert status == 0, errors
    return folder


def assert_same_run(folder: Path, alone: Path, how: list[str]) -> None:
    assert (folder / "images.safetensors").read_bytes() == (alone / "images.safetensors").read_bytes()
    assert summary(folder)["units"] == summary(alone)["units"]
    written = (folder / ".hydra" / "overrides.yaml").read_text().splitlines()
    assert written == [f"- {text}" for text in [*SEVERAL, *how]]


@pytest.mark.slow
def test_lightning_starts_the_others(alone: Path, tmp_path: Path) -> None:
    how = ["trainer.strategy=problems", "trainer.devices=2"]
    place = f"hydra.run.dir={cli.quoted(tmp_path / ODD)}"
    status, output, errors = finish(start(*SEVERAL, *how, place))
    assert (status, errors) == (0, [])
    assert output.count("report.html") == 1  # one process speaks
    assert_same_run(tmp_path / ODD, alone, how)
    shutil.rmtree(tmp_path / ODD / "figures")
    status, _, errors = finish(start(f"resume={tmp_path / ODD}"))
    assert status == 0
    assert all("going on from" in line for line in errors), errors
    assert_same_run(tmp_path / ODD, alone, how)


@pytest.mark.slow
def test_torchrun_starts_all(alone: Path, tmp_path: Path) -> None:
    how = ["trainer.strategy=problems", "trainer.devices=2"]
    module = ("torch.distributed.run", "--nproc-per-node=2", "--master-port", free_port(), "-m")
    status, output, errors = finish(start(*SEVERAL, *how, "hydra.run.dir=out", module=module))
    assert status == 0, errors
    assert output.count("report.html") == 1
    assert_same_run(tmp_path / "out", alone, how)


@pytest.mark.slow
def test_srun_starts_all(alone: Path, tmp_path: Path) -> None:
    """Two processes with the variables that SLURM gives them."""
    how = ["trainer.strategy=problems", "trainer.devices=2"]
    job = {
        "SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "fvlight", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": free_port(),
    }  # fmt: skip
    ranks = [
        start(*SEVERAL, *how, "hydra.run.dir=out", **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        for rank in range(2)
    ]
    ends = [finish(rank) for rank in ranks]
    assert [status for status, *_ in ends] == [0, 0], ends
    assert [output.count("report.html") for _, output, _ in ends] == [1, 0]
    assert_same_run(tmp_path / "out", alone, how)
