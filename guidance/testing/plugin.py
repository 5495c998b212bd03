"""What pytest has to know before it looks for tests: the options of the conformance suite. Nothing heavy is imported here."""

from typing import Any


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("polyguide", "conformance of a modality (pytest --pyargs guidance.testing)")
    group.addoption("--modality", action="append", default=[], metavar="NAME", help="the modality to be asked; may be repeated")
    group.addoption(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of its training config, such as data=digits or network.channels=8, so that the tests are quick; may be repeated",
    )
