"""What the README names is there; `test_bare_clone.py` pastes what it says to paste."""

from __future__ import annotations

import re

from apps.console.supervisor import ROOT


def test_every_make_target_and_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for name in re.findall(r"\]\(([A-Za-z][^):]*)\)", text):
        assert (ROOT / name).exists(), name
