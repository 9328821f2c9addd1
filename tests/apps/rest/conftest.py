from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.apps.rest.callers import Api


@pytest.fixture
def api(db: None) -> Iterator[Api]:
    # Imported here: this file is read before Django is set up.
    from tests.apps.rest.callers import forget_callers, make_api

    forget_callers()
    yield make_api()
    forget_callers()
