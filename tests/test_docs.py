"""What documents show is true: commands are understood by the real command line, Python runs, links and paths lead somewhere."""

from __future__ import annotations

import argparse
import doctest
import importlib
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from jobs import cli, exits
from pipeline.errors import PipelineError
from tests.conftest import PHOTOS
from tests.test_architecture import ROOT

_ELSEWHERE = {"build", "demo-out", "eval-out", "runs", "shared"}
_SHELL = {"source", "export", "ln"}
_PLACEHOLDERS = {"VERB", "CONFIG"}
_LOOKS_ALIVE = re.compile(r"^(msinn [a-z-]|make [a-z]|python (-m )?\w+[./]|pip install|from [\w.]+ import|import \w)", re.MULTILINE)


def pages() -> list[Path]:
    found = [path for path in ROOT.rglob("*.md") if not any(part.startswith(".") or part in _ELSEWHERE for part in path.relative_to(ROOT).parts)]
    assert len(found) > 20
    return sorted(found)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str | None = None) -> list[Block]:
    found = []
    for page in pages():
        opened: tuple[int, str] | None = None
        text: list[str] = []
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.lstrip().startswith("```"):
                if opened is None:
                    opened, text = (number, line.strip().strip("`")), []
                else:
                    found.append(Block(page, *opened, "\n".join(text)))
                    opened = None
            elif opened is not None:
                text.append(line)
        assert opened is None, f"{page}: a block does not end"
    return [block for block in found if language is None or block.language == language]


def commands() -> list[tuple[str, list[str]]]:
    """Where and what: each command of the `sh` blocks, as a shell splits it, without what stands before the program."""
    found = []
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = words[3:] if words[:2] == ["nice", "-n"] else words
            if words:
                found.append((block.id, words))
    return found


def test_every_block_says_what_it_is() -> None:
    """`sh` is checked and `python` is run; `text` is neither, and must not look like either."""
    assert {block.id: block.language for block in blocks() if block.language not in ("sh", "python", "text")} == {}
    hidden = [block.id for block in blocks("text") if _LOOKS_ALIVE.search(block.text)]
    assert hidden == []


def parsed(words: list[str]) -> argparse.Namespace:
    """What the command line makes of `msinn WORDS`; `SystemExit` if it refuses."""
    found = cli.parser().parse_args(words)
    if found.verb == "submit":
        cli.parser().parse_args(found.arguments[1:])
    return found


@pytest.mark.parametrize(("where", "words"), [pytest.param(*each, id=each[0]) for each in commands()])
def test_a_command_is_one_that_exists(where: str, words: list[str]) -> None:
    program, *rest = words
    if program == "msinn":
        if not _PLACEHOLDERS & set(rest):
            assert callable(parsed(rest).command)
    elif program == "make":
        goals = [word for word in rest if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{re.escape(goal)}:", makefile, re.MULTILINE) for goal in goals)
        assert all(re.search(rf"^{word.partition('=')[0]} \?=", makefile, re.MULTILINE) for word in rest if "=" in word)
    elif program == "python":
        assert_script(rest)
    elif "/" in program:
        assert os.access(ROOT / program, os.X_OK), f"{where}: there is no script {program}"
        assert re.search(rf"^{rest[0]}\b.*\)", (ROOT / program).read_text(), re.MULTILINE), f"{where}: {program} does not know {rest[0]}"
    else:
        assert program in _SHELL, f"{where}: nothing checks {program}"


def assert_script(words: list[str]) -> None:
    """`python FILE --option` or `python -m MODULE --option`: the file is there and knows the options."""
    file = ROOT / (f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0])
    file = file if file.exists() else file.with_suffix("") / "__main__.py"
    source = file.read_text()
    unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
    assert unknown == []


@pytest.mark.parametrize("words", [["compress", "a"], ["plan", "a", "b", "--bbp", "1"], ["submit", "--", "compress", "a"], ["nothing"]])
def test_a_command_that_does_not_exist_is_found(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(words)


def subparser(words: list[str]) -> argparse.ArgumentParser | None:
    """The parser of the verb that these words begin with; None if there is none."""
    found = cli.parser()
    for word in words:
        choices = next((action.choices for action in found._actions if isinstance(action, argparse._SubParsersAction)), None)
        if choices is None or word.startswith("-"):
            break
        if word not in choices:
            return None
        found = choices[word]
    return found


def test_commands_within_sentences_exist() -> None:
    wrong = []
    for page in pages():
        for text in re.findall(r"`(?:\.venv/bin/)?msinn ([^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            words = [word for word in text.split() if word not in ("--debug", "-q")]
            if words[0] in _PLACEHOLDERS:
                continue
            verb = subparser(words)
            options = {word for word in words if word.startswith("--") and word != "--"}
            if verb is None or (verb.prog != "msinn submit" and not options <= set(verb._option_string_actions)):
                wrong.append((str(page.relative_to(ROOT)), text))
    assert wrong == []


def test_every_verb_is_shown() -> None:
    shown = {words[1] for where, words in commands() if where.startswith("jobs/") and words[0] == "msinn"}
    verbs = next(action.choices for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(verbs) - shown == set()


def test_the_exit_codes_are_those_of_the_readme() -> None:
    said = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)}
    kinds = [PipelineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    used = {0} | {kind.exit_code for kind in kinds} | {value for name, value in vars(exits).items() if name.startswith("EXIT_")}
    assert said == used - {exits.EXIT_PIPE}  # of a reader that left, which every Unix tool has


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` of the demo and an `archive` of them, made by the real command."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos").mkdir()
    first, *others = sorted(PHOTOS.rglob("*.webp"))[:4]
    Image.open(first).convert("RGB").save(folder / "photos" / "one.png")
    for path in others:
        shutil.copy(path, folder / "photos")
    assert cli.main(["-q", "compress", str(folder / "photos"), str(folder / "archive"), "--q", "5"]) == 0
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is a copy of `place`, to be changed at will."""
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("block", [pytest.param(block, id=block.id) for block in blocks("python")])
def test_python_runs(block: Block) -> None:
    exec(compile(block.text, block.id, "exec"), {"__name__": "__main__"})


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "module",
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("msinn_core", "pipeline", "jobs")
        for path in sorted((ROOT / package).rglob("*.py"))
        if ">>> " in path.read_text()
    ],
)
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_links_lead_somewhere() -> None:
    broken = []
    for page in pages():
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        broken += [(page, link) for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / link).exists()]
        for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|sh|toml|json|yaml))`", text):
            # What begins with no folder of ours lies elsewhere: in an archive, or in what a command writes.
            bases = [base for base in (ROOT, page.parent, ROOT / "pipeline", ROOT / "msinn_core") if (base / path.split("/")[0]).is_dir()]
            if bases and not any((base / path).exists() for base in bases):
                broken.append((page, path))
    assert broken == []


def test_every_folder_of_code_has_a_short_readme() -> None:
    folders = {path.parent for top in ("msinn_core", "pipeline", "jobs", "infra", "tests") for path in (ROOT / top).rglob("*.py")}
    folders = {folder.parent if folder.parent.name in ("golden", "unit") else folder for folder in folders}
    assert [str(folder) for folder in sorted(folders) if not (folder / "README.md").exists()] == []
    lengths = {str(folder): len((folder / "README.md").read_text().splitlines()) for folder in folders}
    assert {folder: length for folder, length in lengths.items() if length > 50} == {}
