"""The documentation says what is so: its code runs, its links lead somewhere, what it names exists, and the site builds."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docs_runner
import pytest
from docs_runner import ROOT, Broken, Shell, blocks, run_page

import guidance
from guidance.cli import COMMANDS
from guidance.plugins import commands, everything, plugins

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]

ONLY_COMPOSED = ("docs/results/README.md",)
"""Pages whose commands take hours: their settings are composed to a config, which is not run."""

BEFORE = {
    "README.md": {
        "outputs/demo/image/run": "polyguide train data=digits out=outputs/demo/image/run",  # what `make demo` trains
        "polyguide report": "for run in seed0 seed1 seed2 notes; do polyguide experiment run=runs/$run experiment=tradeoff; done",
    },
    "docs/sharing.md": {"runs/digits": "test -d runs/digits || polyguide train data=digits out=runs/digits"},
}
CHANGED = {
    "docs/results/README.md": {"for s in 0 1 2": "for s in 0"},
}


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("shell")
    with tempfile.TemporaryDirectory() as near:  # a socket's path is short
        made = Shell(folder, str(Path(near) / "socket"))
        try:
            docs_runner.make_cache(made.cache)
            docs_runner.make_files(made.files)
            made.wait()
            yield made
        finally:
            made.close()


@pytest.fixture
def page_folder(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Iterator[Path]:
    """A folder with what pages find in it, in which Python blocks see the environment that commands see."""
    folder = tmp_path / "page"
    shutil.copytree(shell.files, folder)
    monkeypatch.chdir(folder)
    for name in os.environ.keys() - shell.environment.keys() - {"PYTEST_CURRENT_TEST"}:
        monkeypatch.delenv(name)
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    docs_runner.hasten(monkeypatch)
    monkeypatch.syspath_prepend(folder / docs_runner.INSTALLED)
    plugins.cache_clear()
    everything.cache_clear()
    yield folder
    plugins.cache_clear()
    everything.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_a_page_runs(name: str, shell: Shell, page_folder: Path):
    page = (ROOT / name).read_text(encoding="utf-8")
    if name in ONLY_COMPOSED:
        others = 'test "$1" = report -o "$1" = compare'
        (page_folder / "polyguide").write_text(f'#!/bin/sh\n{others} || exec {shell.shims}/polyguide "$@" --cfg job >/dev/null\n')
        (page_folder / "polyguide").chmod(0o755)
        page = page.replace("polyguide ", "./polyguide ")
    run_page(name, page, shell, before=BEFORE.get(name), change=CHANGED.get(name))


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("text\n\n```python\nx = 1\n```\n\n```python\nassert x == 1\ny = x.missing\n```\n", "page.md:9: AttributeError"),
        ("```python\nx = = 1\n```\n", "page.md:2: SyntaxError"),
        (
            "```console\npolyguide --version\npolyguide sample run=nowhere out=x\n```\n",
            "page.md:3: exit status 2\npolyguide sample run=nowhere",
        ),
        ("```console\n$ echo one\none\n$ echo two | grep three\n```\n", "page.md:4: exit status 1"),
        ("```bash\nfor k in 1 2; do\n  test $k = 1\ndone\n```\n", "page.md:3: exit status 1"),
        ("```console\npip install -e '.[hub,nonsense]'\n```\n", "has no extra nonsense"),
        ("```console\nmake nonsense\n```\n", "page.md:2: exit status 2"),
        ("```yaml\na: [1\n```\n", "page.md:2: this is no YAML"),
        ("a\n\n```\npolyguide list\n```\n", "page.md:3: a fence of the language ''"),
        ("```sh\npolyguide list\n```\n", "page.md:1: a fence of the language 'sh'"),
        ("```python\nx = 1\n", "line 1: a fence is not closed"),
    ],
)
def test_a_broken_block_is_told_with_its_line(page: str, said: str, shell: Shell, page_folder: Path):
    with pytest.raises(Broken) as error:
        run_page("page.md", page, shell)
    assert said in str(error.value)


def test_blocks_of_one_page_share_a_folder_and_a_namespace(shell: Shell, page_folder: Path):
    page = "```console\n$ echo held > file\n```\n1. a list\n\n   ```python\n   x = open('file').read()\n   ```\n"
    page += "\n```python\nassert x == 'held\\n'\n```\n"
    assert run_page("page.md", page, shell) == 3


def test_commands_run_as_written_but_for_what_is_cheaper():
    cheap = docs_runner.cheap(["sample", "run=runs/digits", "n=40", "condition.digit=3", "sampler=ddim", "sampler.steps=50", "out=x"])
    assert cheap == ["sample", "run=runs/digits", "condition.digit=3", "sampler=ddim", "out=x", "sampler.steps=1", "n=16", "threads=1"]
    assert docs_runner.cheap(["train", "--help"]) == ["train", "--help"]


# Links


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown and GitHub make it of plain text."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^\s*(`{3,}).*?^\s*\1\s*$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path)) + re.findall(r'(?:src|href)="([^"]+)"', prose(path))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken_links(path: Path) -> list[str]:
    broken = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        there = target.exists() and target.is_relative_to(ROOT)
        headings = re.findall(r"^#+ (.+)$", prose(target), flags=re.MULTILINE) if there and anchor else []
        if not there or (anchor and anchor not in {slug(heading) for heading in headings}):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", [*NAMES, "CHANGELOG.md"])
def test_every_relative_link_leads_somewhere(name: str):
    assert broken_links(ROOT / name) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A heading, `with` code\n\n```text\n# not one\n```\n")
    (tmp_path / "page.md").write_text(
        "# Here\n[a](other.md) [b](other.md#a-heading-with-code) [c](#here) [d](https://x.org/y)\n"
        "[e](gone.md) ![f](gone.png) [g](other.md#not-one) [h](#there) [i](../outside.md)\n```text\n[j](gone.md)\n```\n"
    )
    (tmp_path.parent / "outside.md").write_text("")
    assert broken_links(tmp_path / "page.md") == ["gone.md", "gone.png", "other.md#not-one", "#there", "../outside.md"]


# What is named exists

GROUPS = sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir())


def unknown_names(text: str) -> list[str]:
    """Choices of config groups, commands, and names of `guidance` in code that do not exist."""
    found = []
    words = "\n".join(re.findall(r"`([^`\n]+)`", text))
    typed = "\n".join([words, *(block.text for block in blocks(text) if block.language != "python")])
    code = "\n".join([words, *(block.text for block in blocks(text))])
    made = {"null", *re.findall(r"new-modality (\w+)", code), *re.findall(r"configs/\w+/(\w+)\.yaml", code)}
    for group, choice in re.findall(rf"(?<![\w.])({'|'.join(GROUPS)})=([a-z][\w/]*)\b(?![(.])", typed):
        if choice not in made and not (ROOT / "configs" / group / f"{choice}.yaml").is_file():
            found.append(f"{group}={choice}")
    known = {*COMMANDS, *commands(), "COMMAND"}
    found += [f"polyguide {name}" for name in re.findall(r"(?<![\w./-])polyguide (?!-)([\w-]+)", code) if name not in known]
    for name in re.findall(r"(?<![\w./-])guidance((?:\.[a-zA-Z]\w*)+)(?![\w/=])", code):
        if not named(name.strip(".").split(".")):
            found.append(f"guidance{name}")
    return found


CHOICES = [path.read_text() for path in (ROOT / "configs" / "guidance").glob("*.yaml")]
KEYS = r"^(\w+):|/guidance@(\w+):|- (evidence):"
SETTINGS = {name for text in CHOICES for found in re.findall(KEYS, text, re.MULTILINE) for name in found if name}
"""Of the config group guidance."""


def named(parts: list[str]) -> bool:
    """Whether guidance has it: a module, a name in one, an attribute of that; or a setting of the command line."""
    thing, path = guidance, "guidance"
    for part in parts:
        if hasattr(thing, part):
            thing = getattr(thing, part)
        else:
            try:
                thing = importlib.import_module(f"{path}.{part}")
            except ImportError:
                return parts[0] in SETTINGS or part in ("py", "md")
        path = f"{path}.{part}"
    return True


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_names_exists(name: str):
    assert unknown_names((ROOT / name).read_text(encoding="utf-8")) == []


def test_names_that_do_not_exist_are_found():
    page = "`sampler=ddim` `sampler=magic` `guidance.CFG` `guidance.Magic` `guidance.guide.Nothing` `guidance.scale=3` `loss=0.3`\n"
    page += "```console\npolyguide teach data=digits\npolyguide train data=birds recipe=text/e2e\n```\n"
    assert unknown_names(page) == ["sampler=magic", "data=birds", "polyguide teach", "guidance.Magic", "guidance.guide.Nothing"]


def test_every_choice_and_public_name_is_in_the_docs():
    """The other way round: what can be chosen is described, what can be imported is in the reference."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    for group in ("data", "schedule", "parameterization", "sampler", "grid", "guidance", "loss", "dropout", "experiment", "modality"):
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            assert re.search(rf"`{path.stem}`|{group}={path.stem}\b", pages), f"{group}={path.stem}"
    for command in COMMANDS:
        assert f"\n## {command}\n" in (DOCS / "reference" / "commands.md").read_text(), command
    reference = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = re.findall(r"^::: ([\w.]+)", reference, flags=re.MULTILINE)
    for name in guidance.__all__:
        thing = getattr(guidance, name)
        home = f"guidance.{guidance._HOME[name]}"
        whole = f"{getattr(thing, '__module__', home)}.{name}"
        assert whole in shown or home in shown or f"{home}.{name}" in shown, name


# The site


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("material", reason="pip install 'polyguide[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    pages = [path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")]
    assert {"index.html", "tutorials/text.html", "concepts/scales.html", "reference/guidance.html", "results/index.html"} <= set(pages)
    made = (tmp_path / "site" / "reference" / "guidance.html").read_text()
    assert 'id="guidance.guide.CFG"' in made and "scale * conditional + (1 - scale) * unconditional" in made
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert [address for address in fetched if "canonical" not in address] == [], f"{page.name} fetches from elsewhere"
