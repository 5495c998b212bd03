"""polyguide demo."""

from collections.abc import Sequence
from typing import Any


def demo(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide demo"""
    from guidance.demo.show import show

    show(config, overrides)
