"""The partitions of the large tables."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import IntegrityError, connection

from apps.notifications import partitions
from notifier.ids import floor_id, time_of, uuid7


@pytest.mark.django_db
def test_migrate_makes_partitions_two_weeks_ahead():
    assert partitions.days_ahead() >= 14


@pytest.mark.django_db
def test_partitions_follow_each_other_without_gap_or_overlap():
    for table in partitions.PARTITIONED:
        found = partitions.bounds_of(table)
        assert len(found) >= 2
        assert all(upper == next_lower for (_, _, upper), (_, next_lower, _) in zip(found, found[1:], strict=False))


@pytest.mark.django_db
def test_making_them_again_makes_none():
    assert partitions.ensure_partitions() == 0


@pytest.mark.django_db
def test_a_row_beyond_the_last_partition_is_refused_and_not_hidden():
    with pytest.raises(IntegrityError, match="no partition of relation"), connection.cursor() as cursor:
        beyond = floor_id(datetime.now(UTC) + timedelta(days=400))
        cursor.execute(
            "INSERT INTO notifications_content (id, recipients, data, options) VALUES (%s, '[]', '{}', '{}')",
            [str(beyond)],
        )


@pytest.mark.django_db(transaction=True)
def test_an_old_partition_is_dropped_unless_a_row_in_it_is_still_to_be_sent():
    table = "notifications_event"
    old = datetime(2024, 1, 4, tzinfo=UTC)
    assert partitions._attach(table, old, old + timedelta(days=7)) == 1
    open_row = uuid7(int((old + timedelta(days=1)).timestamp() * 1000))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, "
            "tries, crashes) VALUES (%s, 'push', 'normal', 1, now(), now(), '', 0, 0, 0)",
            [str(open_row)],
        )
    assert partitions.retire_partitions({table: timedelta(days=90)}) == []
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM notifications_pending")
    assert partitions.retire_partitions({table: timedelta(days=90)}) == [f"{table}_p20240104"]
    assert all(name != f"{table}_p20240104" for name, _, _ in partitions.bounds_of(table))


def test_an_id_says_when_it_was_made():
    at = datetime(2026, 11, 22, 20, 30, 10, 120000, tzinfo=UTC)
    assert time_of(uuid7(int(at.timestamp() * 1000))) == at
    assert floor_id(at) <= uuid7(int(at.timestamp() * 1000))
    assert isinstance(floor_id(at), UUID)
