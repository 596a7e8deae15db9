"""``resume=auto``: the same command, again and again, ends with one finished run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fvlight.cli import CONFIG
from fvlight.command import resume
from fvlight.command.resume import LOCK, alone_in, quoted, recorded, with_resume
from fvlight.errors import FvlightError
from tests.test_resume import (  # noqa: F401  (fixtures)
    SMALL,
    Run,
    finished,
    interrupt_after,
    no_handlers,
    one_thread,
    outcome,
    run,
)


def record(folder: Path, typed: list[str], age: float = 0.0, complete: bool | None = None) -> Path:
    """A folder as a run leaves it behind, ``age`` seconds ago."""
    file = folder / ".hydra" / "overrides.yaml"
    file.parent.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(typed), file)
    os.utime(file, (1e9 - age, 1e9 - age))
    if complete is not None:
        (folder / "summary.json").write_text(f'{{"complete": {str(complete).lower()}}}')
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are by default."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "diverse" / "energy_cell"


NETWORK = ["network=energy_cell"]
TYPED = [*NETWORK, "seed=1"]


def going_on(folder: Path, typed: list[str] = TYPED) -> list[str]:
    place = quoted(folder)
    return [*typed, f"resume={place}", f"hydra.run.dir={place}", "hydra.output_subdir=null"]


def test_without_a_run_one_is_begun(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_resume([*TYPED, "resume=auto"], CONFIG) == TYPED
    assert "beginning one" in capsys.readouterr().err
    record(folder / "other seed", [*NETWORK, "seed=2"])
    record(folder / "other order", TYPED[::-1])
    record(folder / "more", [*TYPED, "restarts=2"])
    (folder / "empty" / ".hydra").mkdir(parents=True)
    (folder / "empty" / ".hydra" / "overrides.yaml").touch()
    (folder / "file").touch()
    assert with_resume([*TYPED, "resume=auto"], CONFIG) == TYPED
    assert str(folder.relative_to(Path.cwd())) in capsys.readouterr().err


def test_the_last_one_is_gone_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder / "b", TYPED, age=20)
    newest = record(folder / "a", TYPED, age=10, complete=False)
    record(folder / "d", TYPED, age=30, complete=True)
    record(folder / "c", [*NETWORK, "seed=2"])
    assert with_resume([NETWORK[0], "resume=auto", "seed=1"], CONFIG) == going_on(newest)
    assert "outputs/diverse/energy_cell/a" in capsys.readouterr().err
    # what Hydra shall do is no setting of the run, and stays
    typed = [*TYPED, "hydra.job.name=x"]
    assert with_resume([*typed, "resume='auto'"], CONFIG) == going_on(newest, typed)


def test_a_complete_one_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder / "a", TYPED, age=20)
    record(folder / "b", TYPED, age=10, complete=True)
    assert with_resume([*TYPED, "resume=auto"], CONFIG) is None
    said = capsys.readouterr().err
    assert "outputs/diverse/energy_cell/b is complete" in said
    (folder / "b" / "summary.json").write_text("{")  # no summary
    assert with_resume([*TYPED, "resume=auto"], CONFIG) == going_on(folder / "b")


def test_a_folder_that_is_named(folder: Path, tmp_path: Path) -> None:
    place = "hydra.run.dir=some/where"
    typed = [*TYPED, place]
    assert with_resume([*typed, "resume=auto"], CONFIG) == typed
    (tmp_path / "some" / "where" / "logs").mkdir(parents=True)
    assert with_resume([*typed, "resume=auto"], CONFIG) == typed
    out = record(tmp_path / "some" / "where", TYPED, complete=True)
    assert with_resume([*typed, "resume=auto"], CONFIG) is None
    more = [*typed, "solver.max_steps=9"]  # complete, but not with that
    assert with_resume([*more, "resume=auto"], CONFIG) == going_on(out, more)
    # with the time in it, it is one of many
    typed = [*TYPED, "hydra.run.dir=some/${now:%H-%M}"]
    assert with_resume([*typed, "resume=auto"], CONFIG) is None


def test_settings_that_refer_to_others(folder: Path) -> None:
    """They are compared, and gone on with, as they were typed."""
    typed = [*NETWORK, "restarts=${images_per_problem}"]
    run_dir = record(folder / "a", typed)
    assert recorded(run_dir) == typed
    assert with_resume([*typed, "resume=auto"], CONFIG) == going_on(run_dir, typed)
    assert with_resume([f"resume={run_dir}"], CONFIG) == going_on(run_dir, typed)


def test_in_a_sweep_its_folder_must_be_named(folder: Path) -> None:
    for more in ([], ["hydra.sweep.dir=${now:%H}"]):
        with pytest.raises(FvlightError, match=r"hydra\.sweep\.dir=DIR"):
            with_resume(["-m", "seed=1,2", "resume=auto", *more], CONFIG)
    typed = ["-m", "seed=1,2", "hydra.sweep.dir=out"]
    assert with_resume([*typed, "resume=auto"], CONFIG) == typed


# -- whole runs --------------------------------------------------------------------------------------------


def test_again_and_again(run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    command, statuses = [*SMALL, "resume=auto"], []
    while not statuses or statuses[-1]:
        assert len(statuses) < 20
        with monkeypatch.context() as patch:
            interrupt_after(4, patch, [signal.SIGTERM, signal.SIGUSR1][len(statuses) % 2])
            statuses.append(run(*command)[0])
    assert len(statuses) > 2
    assert set(statuses[:-1]) == {128 + signal.SIGTERM, 128 + signal.SIGUSR1}
    (out,) = (tmp_path / "outputs").glob("*/*/*")
    assert outcome(out) == outcome(finished)
    assert recorded(out) == SMALL
    before = (out / "summary.json").stat().st_mtime_ns
    status, errors = run(*command)
    assert (status, len(errors)) == (0, 1)
    assert "complete" in errors[0]
    assert (out / "summary.json").stat().st_mtime_ns == before
    assert [out] == list((tmp_path / "outputs").glob("*/*/*"))


@pytest.mark.slow
def test_an_experiment_again_and_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    name = "experiment=cadena2018/fig2_complex_cells"
    settings = [name, *SMALL, "restarts=1", "lambda_grid.values=[0,0.5]"]
    statuses = []
    while not statuses or statuses[-1]:
        assert len(statuses) < 20
        with monkeypatch.context() as patch:
            interrupt_after(9, patch, signal.SIGTERM)  # a run takes six blocks
            statuses.append(run(*settings, "resume=auto")[0])
    assert len(statuses) > 2
    assert set(statuses[:-1]) == {128 + signal.SIGTERM}
    assert run(*settings, "hydra.run.dir=plain")[0] == 0
    (out,) = (tmp_path / "outputs").glob("*/*/*")
    parts = [file.parent.name for file in (tmp_path / "plain").glob("*/summary.json")]
    assert len(parts) == 4
    for part in parts:
        assert outcome(out / part) == outcome(tmp_path / "plain" / part)
    assert "complete" in run(*settings, "resume=auto")[1][0]


@pytest.mark.slow
def test_a_sweep_again(run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    command = ["-m", "seed=1,0", *SMALL, "hydra.sweep.dir=sweep", "resume=auto"]
    with monkeypatch.context() as patch:
        interrupt_after(3, patch, signal.SIGTERM)
        assert run(*command)[0] == 128 + signal.SIGTERM
    assert run(*command)[0] == 0
    assert outcome(tmp_path / "sweep" / "1") == outcome(finished)


# -- one command at a time -------------------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from fvlight.command.resume import alone_in\n"
HOLD += "with alone_in(Path(sys.argv[1])): print('here', flush=True); time.sleep(60)"


def held(folder: Path) -> subprocess.Popen[str]:
    """Another process that is at work in the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def test_a_second_command_is_kept_out(
    run: Run,  # noqa: F811
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resume, "GRACE", 0.3)
    out = tmp_path / "out"
    shutil.copytree(finished, out)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK}

    before = content()
    with held(out) as process:
        status, errors = run(f"resume={out}", "threshold=0.7")
        who = f"process {process.pid} on {socket.gethostname()}"
        wanted = f"fvlight: {who} is at work in '{out}': wait for its end, stop it, or choose another directory"
        assert (status, errors) == (2, [wanted])
        process.kill()
    assert content() == before
    assert run(f"resume={out}")[0] == 0  # the lock is gone with its process


def test_it_waits_a_little_for_what_a_killed_run_has_left(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        began = time.monotonic()
        killer = threading.Timer(1.0, process.kill)
        killer.start()
        with alone_in(tmp_path):
            assert 0.5 < time.monotonic() - began < resume.GRACE
            assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        killer.join()
    with alone_in(tmp_path):  # and again
        pass


def test_without_locks_nothing_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
