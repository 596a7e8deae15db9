"""A run that stops, or is stopped, at any moment ends as if nothing had happened."""

from __future__ import annotations

import atexit
import errno
import json
import multiprocessing
import os
import pickle
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from fvlight import cli
from fvlight.priors import TotalVariation
from fvlight.solvers import Patience
from fvlight.tasks import DiverseTask
from fvlight.training import AtomicCheckpointIO, SaveRegularly
from fvlight.zoo import load_network
from tests.helpers import (  # noqa: F401  (fixtures; the third for all tests)
    called,
    handlers_taken_off,
    no_handlers,
    one_thread,
    small_disk,
)

CONF = Path(__file__).resolve().parents[1] / "conf"
BLOCKS = 9  # of the problem below, at least: twelve problems, five at a time, 18 steps each


def small_task(continuation: str = "none", prior: bool = False, seed: int = 0) -> DiverseTask:
    """Problems that enter and leave the batch at different times; some converge early."""
    return DiverseTask(
        load_network("hubel_wiesel_cell"), "complex", [0], norm=1.0, lambdas=[0, 0.1, 0.5, 2], seed=seed,
        distance_layer="rectified", convention="paper", threshold=0.8, images_per_problem=3, restarts=3,
        continuation=continuation, prior=TotalVariation() if prior else None, alpha=1e-3 if prior else 0.0,  # type: ignore[arg-type]
        patience=Patience(max_steps=18, patience=3, decay=0.1), at_once=5, inner_steps=4,
    )  # fmt: skip


class StopAfter(L.Callback):
    """Ends the fit after so many blocks, as Ctrl-C does, or breaks it off like an error."""

    def __init__(self, blocks: int, error: bool = False) -> None:
        self.left, self.error = blocks, error

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            if self.error:
                raise RuntimeError("broken off")
            trainer.should_stop = True


def trainer(folder: Path, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[SaveRegularly(folder, 0.0), *callbacks], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip


def end_state(task: DiverseTask) -> dict[str, Any]:
    """All that a run ends with, apart from the time it took."""
    assert task.result is not None
    state = {"raw": task.raw.data, "status": task.pool.status, "redrawn": task.redrawn, "silent": task.silent}
    state |= {f"stopping {key}": value for key, value in task.stopping.items()}
    state |= {f"adam {key}": value for key, value in task.optimizers(False).state[task.raw].items()}  # type: ignore[union-attr]
    for key in ("images", "activations", "min_distance", "score", "steps"):
        state[f"result {key}"] = getattr(task.result, key)
    state["history"] = torch.cat(task.history)
    return state


def assert_same(one: DiverseTask, other: DiverseTask) -> None:
    mine, theirs = end_state(one), end_state(other)
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        # NaN, an average that has not begun, equals itself here
        assert torch.equal(value.nan_to_num(7e7), theirs[key].nan_to_num(7e7)), key
    assert one.result is not None
    assert other.result is not None
    assert one.result.status == other.result.status
    assert one.result.summary() == other.result.summary()


@pytest.fixture(scope="module", params=["none", "ascending", "descending", "prior"])
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"prior": True} if request.param == "prior" else {"continuation": request.param}


@pytest.fixture(scope="module")
def undisturbed(variant: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> DiverseTask:
    task = small_task(**variant)
    trainer(tmp_path_factory.mktemp("undisturbed")).fit(task)
    assert len(task.history) >= BLOCKS
    entered = [sorted({int(row) for row in block[:, 0]}) for block in task.history]
    assert len({tuple(rows) for rows in entered}) >= 3  # the batch changes on the way
    return task


@pytest.mark.parametrize("error", [False, True], ids=["stopped", "broken off"])
@pytest.mark.parametrize("blocks", [1, 4, BLOCKS - 1])
def test_going_on_from_any_block_changes_nothing(
    blocks: int, error: bool, undisturbed: DiverseTask, variant: dict[str, Any], tmp_path: Path
) -> None:
    first, before = small_task(**variant), None
    try:
        trainer(tmp_path, StopAfter(blocks, error)).fit(first)
    except RuntimeError as caught:
        before = str(caught)
    assert before == ("broken off" if error else None)
    assert not first.pool.finished
    second = small_task(**variant)
    trainer(tmp_path).fit(second, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same(second, undisturbed)


def test_stopping_again_and_again(undisturbed: DiverseTask, variant: dict[str, Any], tmp_path: Path) -> None:
    path, fits = tmp_path / "last.ckpt", 0
    while True:
        task, fits = small_task(**variant), fits + 1
        loop = trainer(tmp_path, StopAfter(2))
        loop.fit(task, ckpt_path=path if path.exists() else None, weights_only=True)
        if task.pool.finished:
            break
        assert fits < 50
    assert fits >= BLOCKS / 2
    assert_same(task, undisturbed)


def test_a_checkpoint_of_the_end_is_complete(undisturbed: DiverseTask, variant: dict[str, Any], tmp_path: Path) -> None:
    trainer(tmp_path).fit(small_task(**variant))
    again = small_task(**variant)
    trainer(tmp_path).fit(again, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same(again, undisturbed)


# -- the command -------------------------------------------------------------------------------------------

SMALL = [
    "restarts=2", "images_per_problem=2", "lambda_grid.values=[0,0.5,2]", "solver.max_steps=24",
    "trainer=cpu", "solver.at_once=4", "solver.inner_steps=4", "checkpoint_seconds=0",
]  # fmt: skip
Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(
    no_handlers: None,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """The command in this process: exit status and lines of standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.FULL_ERROR, raising=False)

    return lambda *arguments: called(capsys, *arguments)[::2]


def outcome(folder: Path) -> tuple[bytes, dict[str, Any], bytes]:
    """What must not depend on interruptions."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"], summary["command"]
    return (folder / "images.safetensors").read_bytes(), summary, (folder / "metrics.csv").read_bytes()


def record(folder: Path) -> list[str]:
    return list(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))


def interrupt_after(blocks: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """The next runs of the command get a Ctrl-C, or another signal, in their block of this number."""
    run_block, calls = DiverseTask.run_block, []

    def interrupted(task: DiverseTask) -> None:
        calls.append(1)
        run_block(task)
        if len(calls) == blocks:
            signal.raise_signal(number)

    monkeypatch.setattr(DiverseTask, "run_block", interrupted)


@pytest.mark.parametrize("name", ["with space", "a=b,c(ü)", 'it\'s "so"', "back\\slash\\"])
def test_any_path_can_be_resumed(
    name: str, finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        status, errors = run(*SMALL, f"hydra.run.dir={cli.quoted(folder)}")
    assert status == 130
    typed = shlex.split(errors[-1].partition("go on with: ")[2])  # what a shell makes of the remedy
    assert typed == ["fvlight", f"resume={folder}"]
    assert outcome(folder)[1]["complete"] is False
    status, errors = run(*typed[1:])
    assert (status, errors) == (0, [f"going on from {folder / 'checkpoints' / 'last.ckpt'}"])
    assert outcome(folder) == outcome(finished)
    # in quotes too, and the run is not written over
    assert run(f"resume={cli.quoted(folder)}")[0] == 0
    status, errors = run(*SMALL, f"hydra.run.dir={cli.quoted(folder)}")
    assert status == 2
    assert "a run already" in errors[0]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=1", "seed=1"),
        ("restarts=3", "restarts=3"),
        ("lambda_grid.values=[0,1]", "lambdas"),
        ("images_per_problem=3", "images_per_problem=3"),
        ("norm=2", "norm=2"),
        ("convention=code", "convention=code"),
        ("lambda_grid.continuation=ascending", "continuation=ascending"),
        ("network.seed=1", "weights"),
        ("prior=total_variation", "prior=none"),
        ("parameterization.preconditioned=false", "preconditioned=True"),
    ],
)
def test_other_problems_are_refused_and_not_recorded(
    change: str, key: str, finished: Path, run: Run, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before, written = record(out), outcome(out)
    status, errors = run("resume=out", change)
    assert status == 2
    assert len([line for line in errors if line.startswith("fvlight: ")]) == 1
    assert "Traceback" not in "".join(errors)
    assert key in errors[-1]
    # the mistake is forgotten: the run can still be gone on with
    assert record(out) == before
    assert outcome(out) == written
    if change == "seed=1":
        assert run("resume=out")[0] == 0
        assert outcome(out) == written


def test_a_run_that_was_killed_as_it_began(run: Run, finished: Path, tmp_path: Path) -> None:
    """Hydra had made its record but not filled it: nothing tells what had been typed."""
    (tmp_path / "out" / ".hydra").mkdir(parents=True)
    (tmp_path / "out" / ".hydra" / "overrides.yaml").write_bytes(b"")
    status, errors = run("resume=out")
    assert status == 2
    assert "anew" in errors[0]
    assert run(*SMALL, "hydra.run.dir=out")[0] == 0
    assert outcome(tmp_path / "out") == outcome(finished)


def test_what_is_typed_holds_for_the_next_time_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(*SMALL, "hydra.run.dir=out")[0] == 130
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run("resume=out", "solver.max_steps=40")[0] == 130
    assert run("resume=out")[0] == 0
    steps = {point["steps"] for point in outcome(tmp_path / "out")[1]["units"][0]["sweep"]}
    assert steps == {40}
    assert run(*SMALL, "solver.max_steps=40", "hydra.run.dir=plain")[0] == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "plain")


def test_a_finished_run_is_written_again_without_solving(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(*SMALL, "hydra.run.dir=out")[0] == 0
    before = outcome(out)
    for name in ("summary.json", "images.safetensors", "metrics.csv", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "figures")

    def forbidden(*_: Any) -> None:
        raise AssertionError("nothing is left to solve")

    monkeypatch.setattr(DiverseTask, "evaluate", forbidden)
    assert run("resume=out")[0] == 0
    assert outcome(out) == before
    assert (out / "report.html").is_file()
    assert list((out / "figures").glob("*.png"))


def test_an_experiment_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "experiment=cadena2018/fig2_complex_cells"
    settings = [name, *SMALL, "restarts=1", "lambda_grid.values=[0,0.5]"]
    with monkeypatch.context() as patch:
        interrupt_after(9, patch)  # the first run takes six blocks
        assert run(*settings, "hydra.run.dir=out")[0] == 130
    runs = OmegaConf.load(CONF / "experiment" / "cadena2018" / "fig2_complex_cells.yaml").runs
    first, second, third, *_ = runs
    assert outcome(tmp_path / "out" / first)[1]["complete"] is True
    assert outcome(tmp_path / "out" / second)[1]["complete"] is False
    assert not (tmp_path / "out" / third).exists()
    assert run("resume=out")[0] == 0
    assert run(*settings, "hydra.run.dir=plain")[0] == 0
    for part in (first, second, third):
        assert outcome(tmp_path / "out" / part) == outcome(tmp_path / "plain" / part)
    whole = [json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("out", "plain")]
    assert whole[0]["claims"] == whole[1]["claims"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_exit_status_tells_the_signal(
    number: int, run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch, number)
        status, errors = run(*SMALL, "hydra.run.dir=out", "trusted=[mine]")
    assert status == 128 + number
    assert f"by {signal.Signals(number).name};" in errors[-1]
    typed = shlex.split(errors[-1].partition("go on with: ")[2])
    assert typed == ["fvlight", f"resume={tmp_path / 'out'}", "trusted=[mine]"]
    assert run(*typed[1:])[0] == 0
    assert outcome(tmp_path / "out") == outcome(finished)


def test_a_full_disk(
    run: Run, finished: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """One line, the last checkpoint, no half of another; with room again, the run goes on."""
    run_block, calls, out = DiverseTask.run_block, [], small_disk / "out"

    def fill(task: DiverseTask) -> None:
        calls.append(1)
        run_block(task)
        if len(calls) == 4:
            with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(512)):
                    pass

    with monkeypatch.context() as patch:
        patch.setattr(DiverseTask, "run_block", fill)
        status, errors = run(*SMALL, f"hydra.run.dir={out}")
    assert (status, len(errors)) == (2, 1)
    for words in ("last.ckpt", os.strerror(errno.ENOSPC), "make room"):
        assert words in errors[0]
    files = sorted(file.name for file in (out / "checkpoints").iterdir())
    assert files == ["last.ckpt", "last.previous.ckpt"]
    (small_disk / "filler").unlink()
    assert run(f"resume={out}")[0] == 0
    assert outcome(out) == outcome(finished)


# -- damaged checkpoints -----------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def damage(checkpoint: Path, how: str, trap: Path) -> None:
    whole = checkpoint.read_bytes()
    if how == "truncated":
        checkpoint.write_bytes(whole[: len(whole) // 2])
    elif how == "cut short":
        checkpoint.write_bytes(whole[:100])
    elif how == "empty":
        checkpoint.write_bytes(b"")
    elif how == "zeros":
        checkpoint.write_bytes(bytes(len(whole)))
    elif how == "text":
        checkpoint.write_text("no checkpoint\n")
    elif how == "bare pickle":
        checkpoint.write_bytes(pickle.dumps(Malicious(trap)))
    elif how == "pickle in a zip":
        torch.save({"state_dict": {}, "trap": Malicious(trap)}, checkpoint)
    elif how == "foreign":
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.0.0"}, checkpoint)
    else:
        torch.save([1, 2], checkpoint)


KINDS = [
    "truncated", "cut short", "empty", "zeros", "text", "bare pickle", "pickle in a zip", "foreign", "a list",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to be copied and damaged."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with handlers_taken_off():
        assert cli.main([*SMALL, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("how", KINDS)
def test_a_damaged_checkpoint_is_one_line(how: str, finished: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    for name in ("last.ckpt", "last.previous.ckpt"):
        damage(tmp_path / "out" / "checkpoints" / name, how, tmp_path / "trap")
    written = outcome(tmp_path / "out")
    status, errors = run("resume=out")
    assert not (tmp_path / "trap").exists()  # nothing was unpickled
    assert status == 2, errors
    lines = [line for line in errors if not line.startswith("going on from")]
    assert len(lines) == 1, errors
    assert lines[0].startswith("fvlight: ")
    assert "checkpoint" in lines[0]
    assert outcome(tmp_path / "out") == written


@pytest.mark.parametrize("how", sorted({*KINDS} - {"foreign"}))
def test_a_damaged_checkpoint_leaves_the_one_before(
    how: str, run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there the run ends as if nothing had happened."""
    shutil.copytree(finished, tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert run(*SMALL, "hydra.run.dir=short")[0] == 130
    shutil.copytree(tmp_path / "short" / "checkpoints", tmp_path / "out" / "checkpoints", dirs_exist_ok=True)
    damage(tmp_path / "out" / "checkpoints" / "last.ckpt", how, tmp_path / "trap")
    status, errors = run("resume=out")
    assert not (tmp_path / "trap").exists()
    assert (status, len(errors)) == (0, 2), errors
    assert "last.ckpt' is damaged" in errors[1]
    assert "last.previous.ckpt" in errors[1]
    assert outcome(tmp_path / "out") == outcome(finished)


def test_the_trap_works(tmp_path: Path) -> None:
    """The damage above would be seen, were it ever unpickled."""
    damage(Path(shutil.copy(__file__, tmp_path / "file")), "bare pickle", tmp_path / "trap")
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "trap").is_dir()


# -- killed ------------------------------------------------------------------------------------------------


def command(arguments: list[str]) -> None:
    """The command as a process's all."""
    sys.exit(cli.main(arguments))


class Killable:
    """Starts the command in processes that fork from one that has already imported everything."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["lightning", "hydra", "fvlight.cli", "fvlight.application"])
        self.folder, self.settings = folder, settings

    def began(self) -> bool:
        """Whether the run has left a record with which it can be gone on with."""
        recorded = self.folder / ".hydra" / "overrides.yaml"
        return recorded.exists() and recorded.stat().st_size > 0

    def start(self) -> Any:
        arguments = [*self.settings, f"hydra.run.dir={self.folder}"]
        if self.began():
            arguments = [f"resume={self.folder}"]
        return self.call(arguments)

    def call(self, arguments: list[str]) -> Any:
        process = self.context.Process(target=command, args=(arguments,))
        process.start()
        atexit.register(process.kill)  # a test that fails leaves it behind, and Python would wait for it
        return process

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        process.join(120)
        assert process.exitcode == 0

    def kill_when(self, condition: Callable[[], bool], pause: float = 0.0) -> bool:
        """SIGKILL as soon as the condition holds, or some time later; whether the process still ran."""
        process = self.start()
        end = time.monotonic() + 120
        while process.is_alive() and not condition():
            assert time.monotonic() < end
            time.sleep(0.0005)
        time.sleep(pause)
        process.kill()
        process.join()
        return bool(process.exitcode == -9)


LONG = [*SMALL, "solver.max_steps=200", "solver.patience=1000"]


@pytest.fixture(scope="module", params=["none", "ascending"])
def long_settings(request: pytest.FixtureRequest) -> list[str]:
    return [*LONG, f"lambda_grid.continuation={request.param}"]


@pytest.fixture(scope="module")
def plain(
    long_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[bytes, dict[str, Any], bytes]]:
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the process from which the others fork
        Killable(folder, long_settings).finish()
        found = outcome(folder)
        assert found[1]["complete"] is True
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(
    seed: int, plain: tuple[bytes, dict[str, Any], bytes], long_settings: list[str], tmp_path: Path
) -> None:
    """A few checkpoints on, and a random part of a block later, again and again."""
    victim, moments = Killable(tmp_path / "run", long_settings), random.Random(seed)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for _ in range(6):
        seen: set[int] = {checkpoint.stat().st_mtime_ns} if checkpoint.exists() else set()
        wanted, pause = len(seen) + moments.randint(1, 8), moments.uniform(0, 0.03)

        def passed(seen: set[int] = seen, wanted: int = wanted) -> bool:
            if checkpoint.exists():
                seen.add(checkpoint.stat().st_mtime_ns)
            return len(seen) >= wanted

        assert victim.kill_when(passed, pause)
    assert not (tmp_path / "run" / "summary.json").exists()
    victim.finish()
    assert outcome(tmp_path / "run") == plain


@pytest.mark.slow
def test_killed_at_the_worst_moments(
    plain: tuple[bytes, dict[str, Any], bytes], long_settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    victim, checkpoint = Killable(folder, long_settings), folder / "checkpoints" / "last.ckpt"
    # before the first checkpoint
    assert victim.kill_when(lambda: (folder / ".hydra" / "overrides.yaml").exists())  # perhaps still empty
    assert victim.kill_when(victim.began)
    assert not checkpoint.exists()
    # while the first one is written, or just after
    assert victim.kill_when(lambda: (folder / "checkpoints").exists())
    assert victim.kill_when(lambda: bool(list((folder / "checkpoints").glob(".*.part"))))
    # while the results are written
    for name in ("images.safetensors", "metrics.csv", "summary.json"):
        victim.kill_when(lambda name=name: (folder / name).exists())
        assert (folder / name).exists()
        (folder / name).unlink()
    victim.finish()
    assert outcome(folder) == plain


@pytest.mark.slow
def test_killed_at_any_moment(
    plain: tuple[bytes, dict[str, Any], bytes], long_settings: list[str], tmp_path: Path
) -> None:
    """The same command over and over, as a job's script calls it: it ends, however often and by what it is killed."""
    folder, moments = tmp_path / "runs", random.Random(0)
    typed = [*long_settings, f"hydra.run.dir={folder}/${{now:%H-%M-%S-%f}}", "resume=auto"]
    victim, statuses = Killable(folder, long_settings), []
    while sum(status != 0 for status in statuses) < 20 or statuses[-1]:
        assert len(statuses) < 200
        process = victim.call(typed)
        process.join(moments.uniform(0, 3) if len(statuses) < 40 else 120)
        if process.is_alive():
            os.kill(process.pid, moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1]))
            process.join(120)
        statuses.append(process.exitcode)
        if not process.exitcode:
            (summary,) = folder.glob("*/summary.json")
            assert outcome(summary.parent) == plain
            if len(statuses) < 30:
                shutil.rmtree(folder)  # begin another one
    # killed while it imports, too, when nothing takes care of a signal
    known = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1, 128 + signal.SIGTERM, 128 + signal.SIGUSR1, 0}
    assert set(statuses) <= known
