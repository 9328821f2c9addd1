"""`manage.py celery`: Celery's worker and beat, without the rest of Celery's command line."""

from __future__ import annotations

import subprocess
import sys

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
