"""One transaction, repeated once when the database broke a deadlock by ending it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connection, transaction

P = ParamSpec("P")
T = TypeVar("T")

DEADLOCK = "40P01"


def in_one_transaction(work: Callable[P, T]) -> Callable[P, T]:
    """Rows are locked in one order, so a deadlock is rare; it costs one repeat, unless it is the caller's to repeat."""

    @wraps(work)
    def atomically(*args: P.args, **kwargs: P.kwargs) -> T:
        is_ours = not connection.in_atomic_block
        try:
            with transaction.atomic():
                return work(*args, **kwargs)
        except OperationalError as error:
            if not is_ours or getattr(error.__cause__, "pgcode", None) != DEADLOCK:
                raise
        with transaction.atomic():
            return work(*args, **kwargs)

    return atomically
