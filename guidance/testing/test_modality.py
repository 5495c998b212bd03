"""The conformance suite: ``pytest --pyargs guidance.testing --modality=NAME [--override KEY=VALUE]``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guidance.config import config_folder
from guidance.errors import UserError, one_of
from guidance.plugins import plugins, problems
from guidance.testing.checks import CHECKS
from guidance.testing.subject import Broken, Subject


def pytest_generate_tests(metafunc: Any) -> None:
    metafunc.parametrize("name", metafunc.config.getoption("--modality") or [""], scope="module")


@pytest.fixture(scope="module", autouse=True)
def known(name: str) -> None:
    names = list(dict.fromkeys(plugin.name for plugin in plugins()))
    if not name:
        pytest.exit(f"which modality? pytest --pyargs guidance.testing --modality=NAME, one of: {', '.join(names)}", 2)
    if name not in names:
        pytest.exit(str(one_of("modality", name, names)), 2)


@pytest.fixture(scope="module")
def subject(name: str, request: pytest.FixtureRequest) -> Subject:
    try:
        return Subject.of(name, request.config.getoption("--override"))
    except (UserError, Broken) as error:
        told = str(error)
    pytest.exit(f"modality={name} cannot be made: {told}", 2)


def test_it_is_installed(name: str) -> None:
    told = [problem for plugin in plugins() if plugin.name == name for problem in problems(plugin, config_folder())]
    if told:
        pytest.fail("; ".join(told), pytrace=False)


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_contract(subject: Subject, check: Callable[[Subject, Path], None], tmp_path: Path) -> None:
    told = ""
    try:
        check(subject, tmp_path)
    except (Broken, UserError) as error:
        told = str(error)
    if told:  # outside of the except, which pytest would tell as well
        pytest.fail(told, pytrace=False)
