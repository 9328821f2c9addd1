"""What happened: notifications, their deliveries, every try, and everything that came back.

The rows of one accepted request share the first bytes of their ids (see `notifier.ids`), and the large tables
are range-partitioned by id. Rows that reach across partitioned tables do so without database constraints:
these cost 22 us a row and stop writers when a partition is attached or dropped.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from notifier.ids import uuid7
from notifier.lifecycle import State
from notifier.message import Channel, Lane, Mode
from notifier.outcome import Kind
from notifier.queues import QUEUE_LANES

MODES = [(mode.value, mode.value) for mode in Mode]
CHANNELS = [(channel.value, channel.value) for channel in Channel]
LANES = [(lane.value, lane.value) for lane in Lane]
STATES = [(state.value, state.value) for state in State]


def loose(to: str, **options: Any) -> models.ForeignKey[Any, Any]:
    """A reference that the database neither checks nor indexes."""
    return models.ForeignKey(
        to,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
        **options,
    )


class NotificationStatus(models.TextChoices):
    ACCEPTED = "accepted"  # not laid out yet
    SCHEDULED = "scheduled"  # due later
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"  # every delivery in an end state
    CANCELLED = "cancelled"


class Notification(models.Model):
    """One accepted request. Partitioned by id."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    client = loose("clients.Client")
    mode = models.CharField(max_length=4, choices=MODES)
    event_id = models.CharField(max_length=200, blank=True)
    reference = models.CharField(max_length=200, blank=True)
    template_version = loose("templates.TemplateVersion", null=True, blank=True)
    category = loose("people.Category")
    campaign_id = models.UUIDField(null=True, blank=True)
    lane = models.CharField(max_length=8, choices=LANES)
    channels = models.JSONField(default=list, help_text="The channels asked for, in order.")
    recipients = models.IntegerField()
    due_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    metadata = models.JSONField(default=dict, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    status = models.CharField(max_length=11, choices=NotificationStatus.choices)
    completed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [
            models.Index(fields=["client", "mode", "id"], name="notification_client"),
            models.Index(
                fields=["client", "mode", "reference"],
                condition=~models.Q(reference=""),
                name="notification_reference",
            ),
            models.Index(
                fields=["id"],
                condition=models.Q(completed_at__isnull=True),
                name="notification_open",
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Content(models.Model):
    """What was asked for, with all personal data of a request: apart, so that it can be dropped early.

    Has the notification's id. Partitioned by id.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    recipients = models.JSONField(default=list, help_text="`to` as asked, in order.")
    data = models.JSONField(default=dict)
    options = models.JSONField(default=dict, help_text="The `push`, `sms` and `email` objects of the request.")
    inline = models.JSONField(
        null=True,
        blank=True,
        help_text="`content` by channel, when it was no template.",
    )

    def __str__(self) -> str:
        return str(self.id)


class Delivery(models.Model):
    """One message to one address of one person, or the reason why there is none. Partitioned by id."""

    id = models.UUIDField(primary_key=True, editable=False)
    notification = loose("notifications.Notification")
    client = loose("clients.Client")
    mode = models.CharField(max_length=4, choices=MODES)
    category = loose("people.Category")
    campaign_id = models.UUIDField(null=True, blank=True)
    user = loose("people.User", null=True, blank=True)
    recipient_no = models.SmallIntegerField(help_text="Which entry of the request's `to`, from 0.")
    channel = models.CharField(max_length=5, choices=CHANNELS)
    platform = models.CharField(max_length=10, blank=True)
    address = loose("people.Address", null=True, blank=True)
    device = loose("people.Device", null=True, blank=True)
    address_hash = models.UUIDField(null=True, blank=True)
    locale = models.CharField(max_length=35, blank=True)
    account = loose("providers.ProviderAccount", null=True, blank=True)
    lane = models.CharField(max_length=8, choices=LANES)
    state = models.CharField(max_length=11, choices=STATES)
    reason = models.CharField(max_length=40, blank=True)
    detail = models.CharField(max_length=500, blank=True)
    stopped_by = models.CharField(max_length=12, blank=True, help_text="The gate that said no.")
    seen = models.JSONField(null=True, blank=True, help_text="The value that gate saw.")
    claim_no = models.IntegerField(default=0)
    expires_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    opened_at = models.DateTimeField(null=True, blank=True)
    clicked_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "deliveries"
        indexes = [models.Index(fields=["user", "id"], name="delivery_user")]

    def __str__(self) -> str:
        return str(self.id)


class Waiting(models.TextChoices):
    """Why a delivery waits; empty: it is ready."""

    SCHEDULED = "scheduled"
    RETRY_BACKOFF = "retry_backoff"
    RATE_LIMITED = "rate_limited"
    PROVIDER_THROTTLED = "provider_throttled"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_PAUSED = "provider_paused"
    CHANNEL_PAUSED = "channel_paused"
    CLIENT_PAUSED = "client_paused"
    CATEGORY_PAUSED = "category_paused"
    CAMPAIGN_PAUSED = "campaign_paused"
    NOTIFICATION_PAUSED = "notification_paused"


class Pending(models.Model):
    """A delivery that is still to be sent: where the relay and the claim live. Gone when its result is recorded.

    Narrow and never partitioned: a due time prunes no partition, so a pick over the partitions of `Delivery`
    would cost more with each day kept.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    channel = models.CharField(max_length=5, choices=CHANNELS)
    lane = models.CharField(max_length=8, choices=[(lane, lane) for lane in QUEUE_LANES])
    client_id = models.IntegerField()
    wake_at = models.DateTimeField(help_text="Look at this row again then.")
    due_at = models.DateTimeField(help_text="Not to be sent before; never later than it expires.")
    lease_until = models.DateTimeField(null=True, blank=True, help_text="Set: a worker holds it.")
    waiting = models.CharField(max_length=20, blank=True, choices=Waiting.choices)
    claim_no = models.IntegerField(default=0, help_text="The fence: each claim raises it, never the other way.")
    tries = models.SmallIntegerField(default=0, help_text="Counted outcomes.")
    crashes = models.SmallIntegerField(default=0, help_text="Leases that ended without a result, since the last one.")

    class Meta:
        verbose_name_plural = "pending"
        indexes = [models.Index(fields=["channel", "lane", "client_id", "wake_at"], name="pending_wake")]

    def __str__(self) -> str:
        return str(self.id)


class Expansion(models.Model):
    """A notification that is not laid out yet: in many recipients, or due later. Has the notification's id."""

    id = models.UUIDField(primary_key=True, editable=False)
    client_id = models.IntegerField()
    due_at = models.DateTimeField()
    wake_at = models.DateTimeField()
    position = models.IntegerField(default=0, help_text="How many entries of `to` are laid out.")

    class Meta:
        indexes = [models.Index(fields=["client_id", "wake_at"], name="expansion_wake")]

    def __str__(self) -> str:
        return str(self.id)


class Attempt(models.Model):
    """One try, written when its result is known, or found to be unknown. Partitioned by id.

    The id is derived from (delivery, claim_no): a record repeated after a lost COMMIT writes once.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    delivery = loose("notifications.Delivery")
    claim_no = models.IntegerField()
    account = loose("providers.ProviderAccount", null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=13, choices=[(kind.value, kind.value) for kind in Kind])
    scope = models.CharField(max_length=7, blank=True)
    provider_ref = models.CharField(max_length=200, blank=True)
    provider_code = models.CharField(max_length=100, blank=True)
    http_status = models.SmallIntegerField(null=True, blank=True)
    detail = models.CharField(max_length=500, blank=True)
    is_late = models.BooleanField(
        default=False,
        help_text="Its lease was over: the result was kept, not followed.",
    )

    class Meta:
        indexes = [
            models.Index(fields=["delivery"], name="attempt_delivery"),
            models.Index(
                fields=["provider_ref"],
                condition=~models.Q(provider_ref=""),
                name="attempt_provider_ref",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.delivery_id} #{self.claim_no}"


class Event(models.Model):
    """What came back, or what a person did. Partitioned by id, which is derived: a repeat writes nothing."""

    id = models.UUIDField(primary_key=True, editable=False)
    delivery = loose("notifications.Delivery")
    kind = models.CharField(max_length=12)
    source = models.CharField(max_length=60)
    is_machine = models.BooleanField(default=False)
    at = models.DateTimeField()
    detail = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes = [models.Index(fields=["delivery"], name="event_delivery")]

    def __str__(self) -> str:
        return f"{self.kind} {self.delivery_id}"


class ReceiptInbox(models.Model):
    """A receipt as it came, settled later: early, late and unmatched ones are all kept (for 7 days)."""

    account = models.ForeignKey("providers.ProviderAccount", on_delete=models.CASCADE, related_name="+")
    provider_event_id = models.CharField(max_length=250)
    receipt = models.JSONField()
    received_at = models.DateTimeField(auto_now_add=True)
    wake_at = models.DateTimeField(null=True, blank=True, help_text="Look at it again then; empty: settled.")
    looks = models.SmallIntegerField(default=0)
    outcome = models.CharField(max_length=20, blank=True, help_text="What became of it.")

    class Meta:
        verbose_name_plural = "receipt inbox"
        constraints = [models.UniqueConstraint(fields=["account", "provider_event_id"], name="receipt_once")]
        indexes = [
            models.Index(
                fields=["wake_at"],
                condition=models.Q(wake_at__isnull=False),
                name="receipt_wake",
            ),
            models.Index(fields=["received_at"], name="receipt_received"),
        ]

    def __str__(self) -> str:
        return self.provider_event_id


class IdempotencyKey(models.Model):
    """A request that was answered: its unique index is the lock. Hash-partitioned.

    `id` is a digest of (client, mode, key), so a key is never global and never readable.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    fingerprint = models.UUIDField(help_text="Digest of method, path and canonical body.")
    status = models.SmallIntegerField(default=0)
    answer = models.TextField(help_text="The body that was answered, byte for byte.")
    location = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["created_at"], name="idempotency_key_created")]


class EventKey(models.Model):
    """A caller's event that was accepted. Hash-partitioned. `id` is a digest of (client, mode, event_id)."""

    id = models.UUIDField(primary_key=True, editable=False)
    fingerprint = models.UUIDField(help_text="Digest of what the event says: template, content, to, data ...")
    notification_id = models.UUIDField()
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["created_at"], name="event_key_created")]


class HoldScope(models.TextChoices):
    CHANNEL = "channel"
    ACCOUNT = "account"
    CLIENT = "client"
    CATEGORY = "category"
    CAMPAIGN = "campaign"
    NOTIFICATION = "notification"


class HoldAction(models.TextChoices):
    PAUSE = "pause"
    CANCEL = "cancel"


class Hold(models.Model):
    """Something is paused or cancelled. Read whole by each claim: pausing a million rows is one insert."""

    scope = models.CharField(max_length=12, choices=HoldScope.choices)
    subject = models.CharField(max_length=64, help_text="The channel, or the id of what is held.")
    action = models.CharField(max_length=6, choices=HoldAction.choices, default=HoldAction.PAUSE)
    reason = models.CharField(max_length=40, blank=True, help_text="Reason code for what it cancels.")
    note = models.CharField(max_length=500, blank=True)
    created_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["scope", "subject"], name="hold_once"),
            # Only a notification's deliveries are also ended in pages; others would wait for their next claim.
            models.CheckConstraint(
                condition=models.Q(action=HoldAction.PAUSE) | models.Q(scope=HoldScope.NOTIFICATION),
                name="hold_cancels_a_notification",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.scope} {self.subject}"


class Tally(models.Model):
    """Counts of state changes, written with the change itself and compacted later; nothing counts live rows.

    `from_state` is empty for what was accepted. A state's count now is what moved in less what moved out.
    """

    hour = models.DateTimeField()
    client_id = models.IntegerField()
    mode = models.CharField(max_length=4)
    channel = models.CharField(max_length=5)
    lane = models.CharField(max_length=8)
    category_id = models.IntegerField()
    template_version_id = models.IntegerField(null=True)
    campaign_id = models.UUIDField(null=True)
    account_id = models.IntegerField(null=True)
    from_state = models.CharField(max_length=11)
    to_state = models.CharField(max_length=11)
    n = models.IntegerField()

    class Meta:
        verbose_name_plural = "tallies"
        indexes = [models.Index(fields=["hour"], name="tally_hour")]


class BrokerHealth(models.Model):
    """One row: whether the broker answers, as the relay last saw it. Web processes read it instead of trying."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    is_up = models.BooleanField(default=True)
    checked_at = models.DateTimeField()


class Heartbeat(models.Model):
    """A process that does work, and when it last did: alive is not the same as consuming."""

    name = models.CharField(max_length=120, primary_key=True)
    kind = models.CharField(max_length=20)
    queues = models.CharField(max_length=200, blank=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name
