from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.apps.console.admin.site import Site
    from tests.apps.notifications.world import World


@pytest.fixture
def world(db: None) -> World:
    # Imported here: this file is read before Django is set up.
    from apps.templates.versions import forget_all
    from notifier.message import Mode
    from tests.apps.notifications.world import World
    from tests.apps.rest.callers import forget_callers

    forget_callers()
    forget_all()
    return World.make(Mode.LIVE)


@pytest.fixture
def site(db: None) -> Site:
    """The admin site as one who may do everything sees it."""
    from tests.apps.console.admin.site import Site

    return Site.of("root")
