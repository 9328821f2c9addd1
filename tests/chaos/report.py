"""What was measured, scenario by scenario: printed at the end, whether it passed or not."""

from __future__ import annotations


class Report:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def add(self, scenario: str, **measured: object) -> None:
        words = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in measured.items())
        self.lines.append((scenario, words))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, dict):
        return " ".join(f"{key}={count}" for key, count in sorted(value.items())) or "none"
    return str(value)
