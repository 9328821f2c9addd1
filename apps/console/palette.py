"""The colours of charts, as plain hex: a canvas knows no CSS variables. Readable on white and on near-black."""

from __future__ import annotations

SENT = "#16a34a"
FAILED = "#dc2626"
SUPPRESSED = "#94a3b8"
TEXT = "#64748b"
GRID = "#94a3b833"
