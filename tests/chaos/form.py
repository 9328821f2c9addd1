"""How much: the full form, or the short one that every change must pass (SHORT=1). And the seed."""

from __future__ import annotations

import os
import secrets
from typing import TypeVar

T = TypeVar("T")

SHORT = os.environ.get("SHORT", "") not in ("", "0")
SEED = int(os.environ.get("SEED") or secrets.randbelow(2**32))
"""Of everything random here: who is killed and when, what is sent to whom. SEED=n repeats it."""


def sized(full: T, short: T) -> T:
    return short if SHORT else full
