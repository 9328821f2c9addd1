from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.apps.notifications.world import World


@pytest.fixture
def world(db: None) -> Iterator[World]:
    """A client that may do everything, three people, a template in each kind of category."""
    yield _fresh_world()


@pytest.fixture
def committed_world(transactional_db: None) -> Iterator[World]:
    """The same, for tests that use several connections."""
    yield _fresh_world()


def _fresh_world() -> World:
    from apps.templates.versions import forget_all
    from notifier.message import Mode
    from tests.apps.notifications.world import World
    from tests.apps.rest.callers import forget_callers

    forget_callers()
    forget_all()
    return World.make(Mode.LIVE)
