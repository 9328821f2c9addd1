"""The tasks' own guard against a database or broker that goes away."""

from __future__ import annotations

import pytest
from celery import current_app
from django.db import InterfaceError, OperationalError
from kombu.exceptions import OperationalError as BrokerError

from apps.notifications import tasks
from notifier.queues import ALL_QUEUES

GUARDED = (tasks.deliver, tasks.expand, tasks.settle_receipts, tasks.keep_up)


@pytest.mark.parametrize("task", GUARDED, ids=lambda task: task.name)
def test_a_task_tries_again_when_the_database_or_the_broker_is_away(task: object) -> None:
    assert set(task.autoretry_for) == {OperationalError, InterfaceError, BrokerError}  # type: ignore[attr-defined]
    assert task.retry_backoff and task.retry_jitter  # type: ignore[attr-defined]


def test_all_tries_of_a_task_end_before_the_broker_hands_out_a_second_copy() -> None:
    waits = [min(tasks.RETRYING["retry_backoff_max"], 2**n) for n in range(tasks.RETRYING["max_retries"])]
    visible_after_s = current_app.conf.broker_transport_options["visibility_timeout"]
    longest_run_s = 45
    assert sum(waits) + longest_run_s < visible_after_s


def test_every_job_that_beat_ticks_exists_and_every_tick_goes_to_a_queue_that_is_read() -> None:
    from apps.notifications.upkeep import JOBS

    for entry in current_app.conf.beat_schedule.values():
        assert entry["task"] in current_app.tasks
        assert entry["options"]["queue"] in ALL_QUEUES
        if entry["task"] == "upkeep":
            assert entry["args"][0] in JOBS


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["complete_notifications", "complete_old_notifications", "compact_tallies",
                                  "forget_old_keys", "sweep_cancels"])  # fmt: skip
def test_a_job_run_twice_does_no_harm(name: str) -> None:
    for _ in range(2):
        tasks.keep_up(name)
