"""How long a process that fell silent in the middle of a transaction may hold its locks."""

from __future__ import annotations

LET_GO = "SET LOCAL idle_in_transaction_session_timeout = '15s';"
"""First in every transaction that locks rows others wait for, or leave out. A machine that is paused between two
statements would else keep them from everybody until it goes on: PostgreSQL's own default is to wait for ever. As
long as the shortest lease; for the transaction alone, so that PgBouncer may share the session."""
