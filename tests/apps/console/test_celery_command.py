"""`manage.py celery`: Celery's worker and beat, without the rest of Celery's command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.console.supervisor import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "manage.py", "celery", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_it_takes_celerys_own_options() -> None:
    done = run("worker", "--help")
    assert done.returncode == 0
    assert "--without-mingle" in done.stdout
    assert "Usage: celery worker [OPTIONS]" in done.stdout
    wrong = run("beat", "--no-such-option")
    assert wrong.returncode == 2
    assert "No such option" in wrong.stderr


def test_it_imports_none_of_celerys_other_commands() -> None:
    imported = run("worker", "--help").stderr
    assert "celery.bin.worker" in imported
    assert "prompt_toolkit" not in imported


def test_what_is_no_command_of_a_service_is_refused_with_those_that_are() -> None:
    for wrong in ([], ["shell"]):
        done = run(*wrong)
        assert done.returncode != 0
        assert "celery worker|beat" in done.stderr


AUTOGROUP = """
import os
from apps.console.management.commands.celery import keep_niceness_between_sessions
{begin}
os.nice(5)
keep_niceness_between_sessions()
print(open("/proc/self/autogroup").read().split()[-1])
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
@pytest.mark.parametrize(
    ("begin", "niceness"), [("os.setsid()", os.nice(0) + 5), ("", 0)], ids=["own session", "somebody's session"]
)
def test_a_worker_is_as_nice_to_other_sessions_as_within_its_own(begin: str, niceness: int) -> None:
    # A shell in between has the session that is not ours, and a fresh one: what another set does not show.
    command = [sys.executable, "-c", AUTOGROUP.format(begin=begin)]
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        start_new_session=True,
    )
    assert int(done.stdout) == niceness
