from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest

from apps.console.logs import json_lines
from tests.apps.notifications.conftest import committed_world, world

__all__ = ["committed_world", "world"]

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What was logged since the test began, each line parsed; every one must be a JSON object."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_lines("tests"))
    logging.getLogger().addHandler(handler)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().split("\n") if line]
    finally:
        logging.getLogger().removeHandler(handler)
