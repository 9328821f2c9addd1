"""`manage.py celery worker|beat`: these two of Celery's commands, for our app, with Celery's own options.

What `celery -q -A config.celery worker` does too, but that imports every other command of Celery's first, a shell with
a prompt of its own among them, and has Django check the admin's screens in each worker: half of a worker's start.
"""

from __future__ import annotations

import contextlib
import os
import sys

from celery import current_app
from celery.bin.base import CLIContext
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Celery's worker or beat for this service, with Celery's options: celery worker -n core@%h -Q core"

    def run_from_argv(self, argv: list[str]) -> None:
        """The options are Celery's: Django's parser would refuse them."""
        which = argv[2:3]
        if which == ["worker"]:
            from celery.bin.worker import worker as command
        elif which == ["beat"]:
            from celery.bin.beat import beat as command
        else:
            sys.exit(f"usage: {os.path.basename(argv[0])} celery worker|beat [Celery's options]")
        os.environ.setdefault("CELERY_SKIP_CHECKS", "1")  # `migrate` runs them, once for each deployment
        if which == ["worker"]:
            keep_niceness_between_sessions()
        context = CLIContext(app=current_app, no_color=True, workdir=None, quiet=True)
        command.main(argv[3:], prog_name=" ".join(argv[1:3]), obj=context)


def keep_niceness_between_sessions() -> None:
    """Let `nice` weigh against the other processes too, where the kernel schedules sessions and not processes.

    With autogroups, the default of most distributions, niceness counts within a session alone, and each process of the
    Procfile has one of its own under a supervisor: bulk would run level with critical. A session that is not ours to
    begin with (a shell's) is left as it is. Source: sched(7), "The autogroup feature".
    """
    niceness = os.nice(0)
    if niceness > 0 and os.getsid(0) == os.getpid():
        # No such file: a kernel without autogroups.
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
            autogroup.write(str(niceness))
