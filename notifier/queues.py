"""Every queue name, and which queue a delivery rings."""

from __future__ import annotations

from notifier.message import Channel, Lane

RETRY = "retry"  # the queue lane of counted retries of normal and bulk, so that a retry storm delays no first try

QUEUE_LANES: tuple[str, ...] = (Lane.CRITICAL, Lane.NORMAL, Lane.BULK, RETRY)

CORE = "core"  # expansion, campaigns, housekeeping
RECEIPTS = "receipts"  # what providers reported
CALLBACKS = "callbacks"  # outbound webhooks: one team's dead endpoint never stalls sending


def queue_for(channel: Channel | str, queue_lane: Lane | str) -> str:
    return f"{channel}.{queue_lane}"


DELIVERY_QUEUES: tuple[str, ...] = tuple(queue_for(channel, lane) for channel in Channel for lane in QUEUE_LANES)
ALL_QUEUES: tuple[str, ...] = (*DELIVERY_QUEUES, CORE, RECEIPTS, CALLBACKS)


def channel_and_lane(queue: str) -> tuple[Channel, str]:
    """The inverse of `queue_for`. Raises ValueError for a queue that carries no deliveries."""
    channel, _, lane = queue.partition(".")
    if lane not in QUEUE_LANES:
        raise ValueError(f"{queue!r} is not a delivery queue; those are {', '.join(DELIVERY_QUEUES)}")
    return Channel(channel), lane


def retry_lane(lane: Lane | str) -> str:
    """Where a counted retry of a delivery of `lane` is rung."""
    return Lane.CRITICAL if lane == Lane.CRITICAL else RETRY
