"""How long one message takes: on a quiet system, and while a large campaign is being sent."""

from __future__ import annotations

import json
import threading

from tests.bench import disk
from tests.bench.bench import Bench
from tests.bench.cpu import Meter, Usage
from tests.bench.driver import Answers, percentile
from tests.bench.load import ITEMS, RECIPIENTS
from tests.bench.report import misses_goal

PROVIDER_MS = 50.0


def latency(bench: Bench) -> None:
    """request -> at the sink: normal lane on a quiet system, then critical lane during a campaign of 100,000"""
    quiet(bench)
    campaign(bench)


def quiet(bench: Bench) -> None:
    samples, per_s = (200, 25.0) if bench.quick else (1200, 30.0)
    ours = bench.ours
    before = calm(bench)
    bench.sink.reset()
    requests = ours.single_requests(samples)
    sent = ours.sent()
    meter = Meter(ours.roots(), ours.bench_pids)
    answers = ours.caller.pace(requests, per_s=per_s)
    usage = meter.stop()
    answers.must_be_accepted()
    ours.wait_sent(sent + samples)
    report(bench, "quiet", answers, usage)
    judge_disk(bench, "quiet", before)


def campaign(bench: Bench) -> None:
    """Several campaigns; the one whose p99 is the middle one counts."""
    before = calm(bench)
    taken = []
    for _ in range(bench.rounds):
        one_campaign(bench)
        taken.append({figure: value for figure, value in bench.figures.items() if figure.startswith("campaign ")})
    taken.sort(key=lambda figures: figures["campaign p99 ms"])
    bench.figures |= taken[len(taken) // 2]
    judge_disk(bench, "campaign", before)


def one_campaign(bench: Bench) -> None:
    """The samples are spread over the time in which the campaign is sent; the provider takes 50 ms for each."""
    recipients, samples, per_s = (20_000, 200, 20.0) if bench.quick else (100_000, 1200, 40.0)
    ours = bench.ours
    bench.sink.reset(PROVIDER_MS)
    bulk = ours.bulk_requests(recipients)
    requests = ours.single_requests(samples, "bench-critical")
    sent = ours.sent()
    accepting = threading.Thread(target=ours.caller.send, args=(bulk,), kwargs={"connections": 2})
    accepting.start()
    ours.wait_for(lambda: ours.sent() > sent + ITEMS * RECIPIENTS, "the campaign's first messages", within_s=120)
    meter = Meter(ours.roots(), ours.bench_pids)
    answers = ours.caller.pace(requests, per_s=per_s)
    usage = meter.stop()
    answers.must_be_accepted()
    accepting.join()
    left = sent + recipients + samples - ours.sent()
    print(f"  when the last sample was taken, {left:,} of {recipients:,} were still to be sent")
    ours.wait_sent(sent + recipients + samples)
    report(bench, "campaign", answers, usage)
    if left <= 0:
        bench.discard({"campaign p50 ms", "campaign p99 ms"}, "the campaign was over before the samples were")
    bench.sink.reset()


def calm(bench: Bench) -> float:
    """Wait a little for a disk that does not stand still of itself; how much of the time it did at last."""
    for _ in range(1 if bench.quick else 6):
        found = disk.stalled(bench.state)
        if found <= disk.MOST_STALLED:
            break
        print(f"  the disk at rest stood still for {found * 100:.1f} % of the time", flush=True)
    return found


def judge_disk(bench: Bench, name: str, before: float) -> None:
    """Void what was taken while the disk stood still of itself, as it did just before or does just after.

    Only those that miss their bound: a disk only adds to a time.
    """
    found = max(before, disk.stalled(bench.state))
    if found > disk.MOST_STALLED:
        of_time = {figure: value for figure, value in bench.figures.items() if figure.startswith(f"{name} ")}
        missed = {figure for figure, value in of_time.items() if misses_goal(figure, value)}
        why = f"the disk at rest stood still for {found * 100:.1f} % of the time"
        if missed:
            bench.discard(missed, why)
        else:
            print(f"  in spite of the disk: {why}")


def report(bench: Bench, name: str, answers: Answers, usage: Usage) -> None:
    """Arrival at the sink less when the request was due; so a provider's own latency is not in it."""
    arrivals = bench.sink.arrivals()
    notifications = [json.loads(body)["id"] for body in answers.bodies]
    rows = bench.ours.query(
        "SELECT notification_id::text, id::text FROM notifications_delivery WHERE notification_id = ANY (%s::uuid[])",
        notifications,
    )
    delivery_of = dict(rows)
    arrived = [arrivals[delivery_of[notification]] for notification in notifications]
    waits = [at - since for at, since in zip(arrived, answers.sent_at, strict=True)]
    after = [at - since - wait for at, since, wait in zip(arrived, answers.sent_at, answers.waits_s, strict=True)]
    for words, key, values in (
        ("request -> at the sink", f"{name} ", waits),
        ("202 -> at the sink", f"{name} after 202 ", after),
        ("request -> 202", f"{name} accept ", answers.waits_s),
    ):
        p50, p99 = percentile(values, 0.5) * 1e3, percentile(values, 0.99) * 1e3
        bench.figures |= {f"{key}p50 ms": p50, f"{key}p99 ms": p99}
        print(f"  {name}: {words:22} p50 {p50:6.1f}  p99 {p99:6.1f} ms, worst {max(values) * 1e3:.0f} ({len(values)})")
    bench.judge({figure for figure in bench.figures if figure.startswith(f"{name} ")}, usage.strangers)
