"""The states of a delivery, and the one ranked table by which they move: never backwards."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"
    RETRYING = "retrying"
    SENT = "sent"
    DELIVERED = "delivered"
    OPENED = "opened"
    CLICKED = "clicked"
    SUPPRESSED = "suppressed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"
    UNDELIVERED = "undelivered"
    DEAD = "dead"
    UNKNOWN = "unknown"


SENDING = "sending"  # shown while a worker holds the row; never stored, never tallied

OPEN = frozenset({State.QUEUED, State.RETRYING})
"""Still to be sent: each has a Pending row."""

ENDS = frozenset(State) - OPEN

_PROGRESS = (State.SENT, State.DELIVERED, State.OPENED, State.CLICKED)
_RANK = {state: rank for rank, state in enumerate(_PROGRESS)}
_MENDED_BY_SENDING = frozenset({State.UNKNOWN, State.DEAD})  # "it was handed on" is news for these
_STOPPED_WAITING = frozenset(
    {
        State.SUPPRESSED,
        State.CANCELLED,
        State.EXPIRED,
        State.DEAD,
        State.FAILED,
        State.UNKNOWN,
        State.RETRYING,
        State.SENT,
    }
)


def may_move(old: State, new: State) -> bool:
    """Whether a delivery in `old` may become `new` by a worker's result or a provider's receipt."""
    if old == new:
        return False
    if old in OPEN:
        # A receipt may overtake the record of its own send, so the progress states are open from here too.
        return new in _STOPPED_WAITING or new in _RANK or new is State.UNDELIVERED
    if old in _RANK:
        if new is State.UNDELIVERED:
            return old is State.SENT
        return new in _RANK and _RANK[new] > _RANK[old]
    # Ended without success. A receipt belongs to a try that was made, whatever else became of the delivery: what
    # arrived, arrived. That it was handed on says less (a bounce may overtake it).
    return new in _RANK and (new is not State.SENT or old in _MENDED_BY_SENDING)


def advance(old: State, new: State) -> State:
    """The state after an event that says `new`: `new` where the table allows it, else `old` unchanged."""
    return new if may_move(old, new) else old
