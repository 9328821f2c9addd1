"""Queues mails with django-post_office and sends them: `python -m tests.bench.peers.mail COUNT`.

Both halves as it is quickest: `send_many`, then its sender with two processes. Prints Unix seconds of the begin.
"""

from __future__ import annotations

import os
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.bench.peers.mail_settings")
django.setup()

from django.db import connection  # noqa: E402
from post_office import mail  # noqa: E402
from post_office.models import EmailTemplate  # noqa: E402

from tests.bench import load  # noqa: E402


def main(count: int) -> None:
    template, _ = EmailTemplate.objects.get_or_create(
        name="bench",
        defaults={
            "subject": load.MAIL["subject"],
            "content": load.MAIL["text"],
            "html_content": load.MAIL["html"],
        },
    )
    print(time.time(), flush=True)
    for start in range(0, count, 1000):
        mail.send_many(
            [
                {
                    "recipients": [load.EMAIL.format(number % load.PEOPLE)],
                    "sender": "Bench <hello@bench.example.com>",
                    "template": template,
                    "context": {"name": f"Person {number}", **load.DATA},
                }
                for number in range(start, min(start + 1000, count))
            ]
        )
    connection.close()  # its processes are forked; send_queued_mail_until_done does this only after its first batch
    mail.send_queued_mail_until_done(processes=2)


if __name__ == "__main__":
    main(int(sys.argv[1]))
