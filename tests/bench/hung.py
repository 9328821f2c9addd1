"""What a hung APNs costs SMS and email, and how soon its own backlog is gone once it answers again."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.bench import load
from tests.bench.bench import Bench
from tests.bench.cpu import Meter, Usage
from tests.bench.driver import Answers, percentile
from tests.bench.sandbox import Sandbox

TEMPLATES = {"push": "bench-normal", "sms": "bench-sms", "email": "bench-letter"}
OTHERS = ("sms", "email")
PER_S = 10.0  # of each channel: a request each, about a third of a small machine
MAY_ADD_S, MAY_ADD_SHARE = 0.020, 0.10  # to a p95, the larger
ACCOUNTS_KNOWN_S = 3.0  # a process looks at its accounts again after 1.5 s
REST_S = 3.0  # after a backlog, before the next quiet window
WARM_S = 10.0
MOST_STRANGE = 0.10  # of the machine, for others: more, and a difference of milliseconds says nothing
SPARE_PAIRS = 3
GIVE_UP_S = 900


@dataclass(frozen=True, slots=True)
class Window:
    """The load of one window. `accepted`: when each notification's 202 came, in Unix seconds; `due`: its request."""

    accepted: dict[str, float]
    due: dict[str, float]
    usage: Usage


@dataclass(slots=True)
class Delivered:
    """What became of a window: by channel, seconds to the provider from the 202, and from when the request was due."""

    usage: Usage
    after_202: dict[str, list[float]] = field(default_factory=lambda: {channel: [] for channel in OTHERS})
    after_due: dict[str, list[float]] = field(default_factory=lambda: {channel: [] for channel in OTHERS})
    push_states: Counter[str] = field(default_factory=Counter)
    push_lost: int = 0  # said to be sent, and not at APNs
    push_twice: int = 0

    @property
    def push_not_sent(self) -> int:
        return self.push_states.total() - self.push_states["sent"]


@dataclass(frozen=True, slots=True)
class Pair:
    quiet: Delivered
    hung: Delivered
    backlog_s: float  # from APNs' return until no push is open


def hung(bench: Bench) -> None:
    """accepted -> at the provider, SMS and email, while APNs answers and while it hangs, in turn; then APNs' backlog"""
    wanted, spare, quiet_s, hung_s = (1, 0, 10, 10) if bench.quick else (5, SPARE_PAIRS, 25, 60)
    bench.sink.reset()
    pairs: list[Pair] = []
    with Sandbox(bench.state / "sandbox", hooks_url=bench.ours.url) as sandbox:
        bench.ours.script("tests.bench.prepare", "sandbox", *sandbox.arguments)
        time.sleep(ACCOUNTS_KNOWN_S)
        settle(bench, send(bench, sandbox, WARM_S), sandbox)  # every adapter made, every connection open
        # A pair that others disturbed is taken again, within reason.
        while len(undisturbed(pairs)) < wanted and len(pairs) < wanted + spare:
            pairs.append(pair(bench, sandbox, quiet_s, hung_s))
    good = undisturbed(pairs)
    for channel in OTHERS:
        compare(bench, channel, good if len(good) == wanted else pairs)
    bench.figures |= {
        "hung backlog s": max(pair.backlog_s for pair in pairs),
        "hung pushes lost": float(sum(pair.hung.push_lost for pair in pairs)),
        "hung pushes not sent": float(sum(pair.hung.push_not_sent for pair in pairs)),
    }
    if len(good) < wanted:
        times = {figure for figure in bench.figures if figure.startswith(("hung sms", "hung email"))}
        bench.discard(times, f"others had over {MOST_STRANGE * 100:.0f} % of the machine in all but {len(good)} pairs")


def pair(bench: Bench, sandbox: Sandbox, quiet_s: float, hung_s: float) -> Pair:
    time.sleep(REST_S)
    window = send(bench, sandbox, quiet_s)
    quiet = settle(bench, window, sandbox)
    show("answers", quiet)
    with sandbox.hanging("apns"):
        window = send(bench, sandbox, hung_s)
        waiting, calls = in_flight(bench, "push"), sandbox.hung_calls()
    assert calls, "no call met the hang"
    returned = time.monotonic()
    wait_for_none(bench, "push")
    backlog_s = time.monotonic() - returned
    hung = settle(bench, window, sandbox)
    show("hangs", hung)
    print(
        f"      {calls} calls met the hang; {waiting} pushes waited when APNs was back, none {backlog_s:.1f} s later: "
        f"{dict(hung.push_states)}, {hung.push_lost} lost, {hung.push_twice} twice",
        flush=True,
    )
    return Pair(quiet, hung, backlog_s)


def undisturbed(pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if max(pair.quiet.usage.strangers, pair.hung.usage.strangers) <= MOST_STRANGE]


def send(bench: Bench, sandbox: Sandbox, seconds: float) -> Window:
    """The load of a window: the channels in turn, each message a request of its own."""
    ours, count = bench.ours, int(PER_S * seconds)
    bodies = [load.singles(count, template, load.to_connected) for template in TEMPLATES.values()]
    paced = [ours.caller.post("/v1/notifications", body) for turn in zip(*bodies, strict=True) for body in turn]
    meter = Meter(ours.roots(), (*ours.bench_pids, sandbox.process.pid))
    answers = ours.caller.pace(paced, per_s=PER_S * len(TEMPLATES))
    usage = meter.stop()
    answers.must_be_accepted()
    return Window(*times_of(answers), usage)


def times_of(answers: Answers) -> tuple[dict[str, float], dict[str, float]]:
    ids = [json.loads(body)["id"] for body in answers.bodies]
    due = dict(zip(ids, answers.sent_at, strict=True))
    waits = dict(zip(ids, answers.waits_s, strict=True))
    return {id: due[id] + waits[id] for id in ids}, due


def settle(bench: Bench, window: Window, sandbox: Sandbox) -> Delivered:
    """Wait until all of a window has ended, and compare when it was accepted with when the providers had it."""
    for channel in TEMPLATES:
        wait_for_none(bench, channel)
    rows = bench.ours.query(
        "SELECT notification_id::text, id::text, channel, state FROM notifications_delivery "
        "WHERE notification_id = ANY (%s::uuid[])",
        list(window.accepted),
    )
    assert len(rows) == len(window.accepted), "one delivery for each notification"
    at_sandbox, entries = sandbox.arrivals()
    arrivals = at_sandbox | bench.sink.arrivals()
    found = Delivered(window.usage)
    for notification, delivery, channel, state in rows:
        if channel == "push":
            found.push_states[state] += 1
            found.push_lost += state == "sent" and delivery not in arrivals
            found.push_twice += entries[delivery] > 1
        else:
            found.after_202[channel].append(arrivals[delivery] - window.accepted[notification])
            found.after_due[channel].append(arrivals[delivery] - window.due[notification])
    return found


def compare(bench: Bench, channel: str, pairs: list[Pair]) -> None:
    """Medians of the windows' p95s, and how much of what APNs' trouble may add to them it did add."""
    before = statistics.median(percentile(pair.quiet.after_202[channel], 0.95) for pair in pairs)
    after = statistics.median(percentile(pair.hung.after_202[channel], 0.95) for pair in pairs)
    may_add = max(MAY_ADD_S, MAY_ADD_SHARE * before)
    bench.figures |= {
        f"hung {channel} quiet p95 ms": before * 1e3,
        f"hung {channel} p95 ms": after * 1e3,
        f"hung {channel} added %": (after - before) / may_add * 100,
    }
    print(
        f"  {channel}: p95 {before * 1e3:.1f} ms while APNs answers, {after * 1e3:.1f} ms while it hangs; "
        f"it may add {may_add * 1e3:.0f} ms"
    )


def show(name: str, found: Delivered) -> None:
    for words, waits in (("202 -> at the provider", found.after_202), ("request -> at the provider", found.after_due)):
        for channel in OTHERS:
            p50, p95 = (percentile(waits[channel], share) * 1e3 for share in (0.5, 0.95))
            print(
                f"  APNs {name}: {channel:5} {words:26} p50 {p50:6.1f}  p95 {p95:6.1f} ms, "
                f"worst {max(waits[channel]) * 1e3:.0f} ({len(waits[channel])})"
            )
    usage = found.usage
    groups = "   ".join(f"{group} {seconds / usage.elapsed_s * 100:.1f}" for group, seconds in usage.groups.items())
    print(
        f"      % of a core: {groups}; machine {usage.busy * 100:.0f} % busy, {usage.strangers * 100:.0f} % for others",
        flush=True,
    )


def in_flight(bench: Bench, channel: str) -> int:
    [(count,)] = bench.ours.query("SELECT count(*) FROM notifications_pending WHERE channel = %s", channel)
    return int(count)


def wait_for_none(bench: Bench, channel: str) -> None:
    bench.ours.wait_for(lambda: in_flight(bench, channel) == 0, f"{channel} to end", within_s=GIVE_UP_S)
