"""What the README says to paste works as pasted."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.acceptance.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
TOURS = [block for block in BLOCKS if "api()" in block]  # the others start the service: `test_up.py` does that


def test_what_is_no_tour_starts_the_service() -> None:
    assert len(TOURS) == 1
    assert all(
        re.search(r"^(make|\.venv/bin/python manage\.py) up$", b, re.MULTILINE) for b in BLOCKS if b not in TOURS
    )


def test_every_make_target_and_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for name in re.findall(r"\]\(([A-Za-z][^):]*)\)", text):
        assert (ROOT / name).exists(), name


def test_the_tour_reaches_the_sandbox(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "demo.env").write_text("".join(f"{name}='{value}'\n" for name, value in stack.demo.items()))
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", TOURS[0]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert '"errors"' not in ran.stdout, ran.stdout
    [id] = re.findall(r'"id":"([0-9a-f-]{36})","status":"accepted"', ran.stdout)
    stack.wait_for(
        lambda: (found := stack.api("GET", f"/v1/notifications/{id}").json())["status"] == "completed" and found,
        "the tour's notification to be done",
    )
    taken = {entry["channel"] for entry in stack.inbox(limit=200) if str(entry["delivery_id"])[:18] == id[:18]}
    assert taken == {"push", "sms", "email"}
