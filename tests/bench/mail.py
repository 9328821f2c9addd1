"""Mail over SMTP, against django-post_office: thirty lines of HTML and a text part, rendered for each person."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time

import psycopg2

from apps.console.supervisor import ROOT
from tests.acceptance.stack import with_database
from tests.bench.bench import Bench, show
from tests.bench.cpu import Meter, Usage
from tests.bench.ours import server_roots

DATABASE = "bench_peer"
SETTINGS = "tests.bench.peers.mail_settings"


def mail(bench: Bench) -> None:
    """mails queued and handed to an SMTP server, ours (2 processes) against django-post_office (2 processes)"""
    count = 2000 if bench.quick else 8000
    ours_per_s, ours_us, their_per_s, their_us, strangers = [], [], [], [], []
    bench.ours.bulk(1000, "bench-mail")
    for _ in range(bench.rounds):
        if not bench.ours_only:
            with bench.aside():
                per_s, usage = post_office(bench, count)
            their_per_s.append(per_s)
            their_us.append(usage.total_s / count * 1e6)
            strangers.append(usage.strangers)
        bench.sink.reset()
        run = bench.ours.bulk(count, "bench-mail")
        assert bench.sink.mails == count
        show("ours", run)
        ours_per_s.append(run.per_s)
        ours_us.append(run.cpu_us)
        strangers.append(run.usage.strangers)
    bench.figures |= {"email ours per_s": statistics.median(ours_per_s), "email cpu_us": statistics.median(ours_us)}
    if their_us:
        bench.figures |= {
            "email post_office per_s": statistics.median(their_per_s),
            "email vs post_office": statistics.median(ours_per_s) / statistics.median(their_per_s),
            "email cpu vs post_office": statistics.median(their_us) / statistics.median(ours_us),
        }
        print(
            f"  ours against django-post_office: {bench.figures['email vs post_office']:.1f}x the rate, "
            f"{bench.figures['email cpu vs post_office']:.1f}x less CPU"
        )
    bench.judge({"email ours per_s", "email vs post_office"}, statistics.median(strangers))


def post_office(bench: Bench, count: int) -> tuple[float, Usage]:
    """Mails a second, and what they took."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": SETTINGS,
        "PEER_DATABASE_URL": with_database(os.environ["DATABASE_URL"], DATABASE),
        "PEER_SMTP_PORT": str(bench.sink.smtp_port),
    }
    with contextlib.closing(psycopg2.connect(with_database(os.environ["DATABASE_URL"], "postgres"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {DATABASE}")
    migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
    subprocess.run(migrate, cwd=ROOT, env=environment, check=True)
    bench.sink.reset()
    command = [sys.executable, "-m", "tests.bench.peers.mail", str(count)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        began = float(process.stdout.readline())
        roots = {"post_office": [process.pid]} | server_roots(bench.servers)
        meter = Meter(roots, [bench.sink.process.pid])
        process.stdout.read()  # ends with the process, whose own time would be gone once it is waited for
        usage = meter.stop()
        ended = time.time()
    assert process.returncode == 0 and bench.sink.mails == count
    per_s, cpu_us = count / (ended - began), usage.total_s / count * 1e6
    groups = "   ".join(f"{group} {us:,.0f}" for group, us in usage.per(count).items() if us >= 0.5)
    print(f"  post_office  {count:>7,} in {ended - began:6.2f} s = {per_s:8,.0f}/s   CPU {cpu_us:7,.0f} us   {groups}")
    return per_s, usage
