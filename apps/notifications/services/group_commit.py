"""Group commit: what the threads of a web process accept at the same moment goes out as one statement.

Who comes while nobody writes, writes at once. Who comes while somebody does waits for that, and then writes for all
who wait: groups grow with the load. One transaction for several requests saves each its commit and finds PostgreSQL's
own caches warm. A group that the database refuses is written one by one, each by its own thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from django.db import DatabaseError, Error

MOST = 16  # requests in a group
MOST_CHARACTERS = 64 * 1024  # of a document; a larger one goes alone, and nobody waits behind it

# What ends a statement before its commit: the SQLSTATE classes of data and of constraints, a serialisation failure, a
# deadlock, a lock that did not come. After any other error, a lost connection above all, nobody knows whether it is in.
_ROLLED_BACK = ("22", "23", "40001", "40P01", "55P03")


class _Turn:
    """A document that waits to be written, and its thread, which waits with it."""

    __slots__ = ("document", "error", "gate", "is_alone", "is_done", "order", "told")

    def __init__(self, document: str, order: str) -> None:
        self.document = document
        self.order = order
        self.told: str | None = None
        self.error: BaseException | None = None
        self.is_alone = False
        self.is_done = False
        self.gate = threading.Lock()
        self.gate.acquire()


class GroupCommit:
    """`execute(documents)` commits documents in one transaction and returns what each came to, in order."""

    def __init__(self, execute: Callable[[Sequence[str]], Sequence[str | None]]) -> None:
        self._execute = execute
        self._lock = threading.Lock()
        self._waiting: deque[_Turn] = deque()
        self._is_writing = False

    def write(self, document: str, *, order: str = "") -> str | None:
        """What `execute` answers for this document, committed. Raises what it raises.

        `order`: documents of a group are written in this order: the first lock that each takes, so that groups of two
        processes seldom wait in a circle. When they do, the database ends one, which is then written one by one.
        """
        if len(document) > MOST_CHARACTERS:
            return self._execute([document])[0]
        turn = _Turn(document, order)
        with self._lock:
            waits = self._is_writing
            if waits:
                self._waiting.append(turn)
            self._is_writing = True
        if waits:
            turn.gate.acquire()
        if not turn.is_done:
            self._write_group(turn)
        if turn.is_alone:
            return self._execute([document])[0]
        if turn.error is not None:
            raise turn.error
        return turn.told

    def _write_group(self, first: _Turn) -> None:
        with self._lock:
            group = [first, *(self._waiting.popleft() for _ in range(min(len(self._waiting), MOST - 1)))]
        try:
            self._try(group)
        finally:
            with self._lock:
                following = self._waiting.popleft() if self._waiting else None
                self._is_writing = following is not None
            for turn in group[1:]:
                turn.gate.release()
            if following is not None:
                following.gate.release()

    def _try(self, group: Sequence[_Turn]) -> None:
        ordered = sorted(group, key=lambda turn: turn.order)
        try:
            for turn, told in zip(ordered, self._execute([turn.document for turn in ordered]), strict=True):
                turn.told = told
        except BaseException as error:
            for turn in group:
                if len(group) > 1 and _is_rolled_back(error):
                    turn.is_alone = True
                else:
                    turn.error = error if turn is group[0] else _as_ones_own(error)
        for turn in group:
            turn.is_done = True


def _is_rolled_back(error: BaseException) -> bool:
    state = getattr(error.__cause__, "pgcode", None) if isinstance(error, DatabaseError) else None
    return state is not None and state.startswith(_ROLLED_BACK)


def _as_ones_own(error: BaseException) -> Exception:
    """Each thread raises an exception of its own: a traceback belongs to one, and so does the end of a thread.

    Of the same class and with the same cause: by them the caller is told to come again, or that something broke.
    """
    kind = type(error) if isinstance(error, Error) else DatabaseError
    own = kind(f"the group was not written: {type(error).__name__}: {error}")
    own.__cause__ = error.__cause__
    return own
