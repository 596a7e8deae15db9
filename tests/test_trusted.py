"""Configurations and files name no code to run: an allow-list of packages, and no pickles."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import OmegaConf
from torch import nn

from fvlight import cli
from fvlight.errors import FvlightError
from fvlight.trusted import require_trusted, trusted_class
from tests.helpers import called, no_handlers  # noqa: F401  (the second is a fixture)

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = ["restarts=1", "images_per_problem=2", "lambda_grid.values=[0,1]", "solver.max_steps=3", "trainer=cpu"]
Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``foreign`` that can be imported, and a file that is there once it has been."""
    folder, imported = tmp_path / "packages", tmp_path / "imported"
    (folder / "foreign").mkdir(parents=True)
    (folder / "foreign" / "__init__.py").write_text(
        "from pathlib import Path\nfrom lightning.pytorch.loggers import CSVLogger\n"
        f"Path({str(imported)!r}).touch()\nclass Mine(CSVLogger):\n"
        "    def __init__(self, more=None, **options):\n"
        f"        Path({str(imported)!r}).write_text(repr(more))\n        super().__init__(**options)\n"
    )
    (folder / "between.py").write_text("from foreign import Mine\n")
    monkeypatch.syspath_prepend(folder)
    yield imported
    for name in ("foreign", "between"):
        sys.modules.pop(name, None)


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

    return lambda *arguments: called(capsys, *SMALL, *arguments)[::2]


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["fvlight.zoo.x", "torch.nn.ReLU", "torchvision.x", "timm.x", "lightning"])
def test_our_own_packages_are_trusted(target: str) -> None:
    require_trusted(target)


@pytest.mark.parametrize(
    "target",
    ["os.system", "torchx.nn.ReLU", "fvlight_evil.Net", "foreign.Mine", "nn.torch.ReLU", "", ".torch", "torch:os.x"],
)
def test_others_are_not(target: str, package: Path) -> None:
    for function in (require_trusted, lambda name: trusted_class(name, Logger)):  # type: ignore[type-abstract]
        with pytest.raises(FvlightError, match="trusted=") as caught:
            function(target)
        assert "\n" not in str(caught.value)
        assert repr(target) in str(caught.value)
    assert not package.exists()  # nothing has been imported


@pytest.mark.parametrize("trusted", [["foreign"], ["other", "foreign"], "foreign", ["foreign.Mine"]])
def test_those_that_the_user_names(trusted: list[str] | str, package: Path) -> None:
    found = trusted_class("foreign.Mine", CSVLogger, trusted)
    assert found.__name__ == "Mine"
    assert package.exists()


def test_no_name_trusts_all() -> None:
    for trusted in ([""], "", ["o"], ["os.path"], None):
        with pytest.raises(FvlightError, match="trusted="):
            require_trusted("os.system", trusted)  # type: ignore[arg-type]


def test_what_a_trusted_package_has_imported_is_not_its_own(package: Path) -> None:
    with pytest.raises(FvlightError, match=r"'foreign\.Mine'"):
        trusted_class("between.Mine", Logger, ["between"])  # type: ignore[type-abstract]
    assert trusted_class("between.Mine", Logger, ["between", "foreign"]).__name__ == "Mine"  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.load", "torch.os.system", "torch.nn", "torch.nn.functional.relu",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "lightning.pytorch.loggers.CSVLogger",
    ],
)  # fmt: skip
def test_only_classes_of_the_kind_asked_for(target: str) -> None:
    """Functions that load pickles or foreign code, and a class that starts a program, lie in trusted packages."""
    with pytest.raises(FvlightError, match=re.escape(f"{target!r} is no torch.nn.modules.module.Module")):
        trusted_class(target, nn.Module)


@pytest.mark.parametrize("target", ["torch.nn.RELU", "torch.nm.ReLU", "torch.nn..ReLU", "torch", "torch.nn.ReLU()"])
def test_what_does_not_exist(target: str) -> None:
    with pytest.raises(FvlightError, match=re.escape(repr(target))):
        trusted_class(target, nn.Module)
    assert trusted_class("torch.nn.ReLU", nn.Module) is nn.ReLU


# -- the command -------------------------------------------------------------------------------------------


def test_a_logger_of_ones_own(run: Run, package: Path, tmp_path: Path) -> None:
    """What is named further down in its settings is not built."""
    own = ["logger=csv", "logger._target_=foreign.Mine", "+logger.more={_target_:os.mkdir,path:trap}"]
    status, errors = run(*own, "hydra.run.dir=out")
    assert (status, len(errors)) == (2, 1)
    assert "'foreign.Mine'" in errors[0]
    assert "'trusted=[foreign]'" in errors[0]
    assert not package.exists()
    assert run(*own, "hydra.run.dir=own", "trusted=[foreign]")[0] == 0
    assert package.read_text() == "{'_target_': 'os.mkdir', 'path': 'trap'}"
    assert not (tmp_path / "trap").exists()
    assert list((tmp_path / "own" / "logs").rglob("metrics.csv"))


def test_a_logger_that_is_none(run: Run) -> None:
    for target, words in {"torch.hub.load": "is no", "lightning.pytorch.loggers.CVSLogger": "there is no"}.items():
        status, errors = run("logger=csv", f"logger._target_={target}")
        assert (status, len(errors)) == (2, 1)
        assert target in errors[0]
        assert words in errors[0]
    status, errors = run("logger=csv", "+logger.colour=red")
    assert (status, len(errors)) == (2, 1)
    assert "colour" in errors[0]


def record(folder: Path, typed: list[str]) -> None:
    """As Hydra leaves one behind."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(typed), folder / ".hydra" / "overrides.yaml")


def test_whom_to_trust_is_not_taken_from_a_record(run: Run, package: Path, tmp_path: Path) -> None:
    """The folder of a run may come from somebody else."""
    record(tmp_path / "out", [*SMALL, "logger=csv", "logger._target_=foreign.Mine", "trusted=[foreign]"])
    status, errors = run("resume=out")
    assert (status, len(errors)) == (2, 1)
    assert "'trusted=[foreign]'" in errors[0]
    assert not package.exists()
    assert run("resume=out", "trusted=[foreign]")[0] == 0
    assert package.exists()


@pytest.mark.parametrize(
    "text",
    ["+hydra.callbacks.x._target_=foreign.Mine", "hydra.run.dir=elsewhere", "hydra/launcher=joblib", "--config-dir=."],
)
def test_a_record_says_nothing_about_hydra(text: str, run: Run, package: Path, tmp_path: Path) -> None:
    record(tmp_path / "out", [*SMALL, text])
    status, errors = run("resume=out")
    assert (status, len(errors)) == (2, 1)
    assert text in errors[0]
    assert not package.exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_record_is_plain_yaml(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / ".hydra").mkdir(parents=True)
    file = tmp_path / "out" / ".hydra" / "overrides.yaml"
    for text in ("- !!python/object/apply:os.mkdir [trap]\n", "- 'a\n", "just words\n", "a: b\n"):
        file.write_text(text)
        status, errors = run("resume=out")
        assert (status, len(errors)) == (2, 1), errors
        assert "damaged" in errors[0]
    assert not (tmp_path / "trap").exists()


# -- the sources -------------------------------------------------------------------------------------------

# Calls that load code or pickles, or start programs, by the last part of the name that they are called by.
WATCHED = {
    "load", "loads", "Unpickler", "load_from_checkpoint", "instantiate", "import_module", "__import__", "resolve_name",
    "get_class", "get_object", "get_method", "eval", "exec", "unsafe_load", "full_load", "load_state_dict_from_url",
    "Popen", "check_call", "check_output", "run_path", "run_module",
}  # fmt: skip
SAFE = {"torch.load": ("weights_only", (["True"],)), "np.load": ("allow_pickle", ([], ["False"]))}
HARMLESS = {"OmegaConf.load", "json.loads"}  # YAML without tags, JSON
KNOWN = {
    ("fvlight/trusted.py", "pkgutil.resolve_name"),  # the allow-list itself
    ("fvlight/command/reproduction.py", "subprocess.Popen"),  # the command `fvlight`
    ("fvlight/training/launching.py", "subprocess.Popen"),  # the same, for the other processes of a run
    ("scripts/train.py", "import_module"),  # a module of fvlight.zoo.training
    ("fvlight/images.py", "image.load"),  # Pillow's
    ("fvlight/command/reproduction_page.py", "load"),  # its own: a summary
}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """The watched calls in a source file, by the names that they are written with."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            method = name.endswith(".eval") and not node.args  # of a module
            if name.rpartition(".")[2] in WATCHED and not method:
                yield name, node


def test_what_loads_code_or_pickles_is_known() -> None:
    folders = [REPOSITORY / name for name in ("fvlight", "zoo", "scripts", "examples")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 100
    found = set()
    for file in files:
        for name, call in calls(file):
            if name in SAFE:
                word, wanted = SAFE[name]
                assert [ast.unparse(given.value) for given in call.keywords if given.arg == word] in wanted, file
            elif name not in HARMLESS:
                found.add((file.relative_to(REPOSITORY).as_posix(), name))
    assert found == {entry for entry in KNOWN if (REPOSITORY / entry[0]).exists()}


def test_our_own_configurations_name_trusted_classes() -> None:
    texts = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "conf").rglob("*.yaml")]
    targets = [target for text in texts for target in re.findall(r"_target_: *(\S+)", text)]
    assert targets
    for target in targets:
        trusted_class(target, Logger)  # type: ignore[type-abstract]
