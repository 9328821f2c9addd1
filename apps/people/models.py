"""Who receives: people, where they can be reached, and what they allowed."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models

from notifier.ids import uuid7
from notifier.message import Channel, Lane, Platform

CHANNELS = [(channel.value, channel.value) for channel in Channel]
LANES = [(lane.value, lane.value) for lane in Lane]
PLATFORMS = [(platform.value, platform.value) for platform in Platform]


def all_channels() -> list[str]:
    return [channel.value for channel in Channel]


class User(models.Model):
    """A person, under the id that the company's own systems use."""

    external_id = models.CharField(max_length=128, unique=True)
    locale = models.CharField(max_length=35, blank=True)
    time_zone = models.CharField(max_length=64, blank=True)
    country = models.CharField(max_length=2, blank=True)
    attributes = models.JSONField(default=dict, blank=True)
    is_opted_out = models.BooleanField(default=False, help_text="Gets nothing but mandatory categories.")
    quiet_from = models.TimeField(null=True, blank=True, help_text="Quiet hours begin, in the person's time zone.")
    quiet_to = models.TimeField(null=True, blank=True, help_text="And end; earlier than the begin: on the next day.")
    erased_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.external_id


class Status(models.TextChoices):
    ACTIVE = "active"
    RETIRED = "retired"


class Address(models.Model):
    """An email address or phone number of a person. `value_hash` is keyed, so that it can outlive the value."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="addresses")
    channel = models.CharField(max_length=5, choices=[c for c in CHANNELS if c[0] != Channel.PUSH])
    value = models.CharField(max_length=320)
    value_hash = models.UUIDField(editable=False)
    is_primary = models.BooleanField(default=False)
    is_verified = models.BooleanField(default=False)
    is_sandbox = models.BooleanField(default=False, editable=False)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    reason = models.CharField(max_length=40, blank=True, help_text="Why it was retired.")
    retired_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "addresses"
        permissions = [("view_address_value", "Can see whole addresses, and what callers asked for word by word")]
        constraints = [
            models.UniqueConstraint(fields=["user", "channel", "value_hash"], name="people_address_once"),
            models.UniqueConstraint(
                fields=["user", "channel"],
                condition=models.Q(is_primary=True),
                name="people_address_one_primary",
            ),
        ]
        indexes = [models.Index(fields=["value_hash"], name="people_address_hash")]

    def __str__(self) -> str:
        return f"{self.channel} ...{self.value[-4:]}"


class Device(models.Model):
    """A phone, tablet, browser or computer that takes push messages. Its token is write-only for callers."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="devices")
    platform = models.CharField(max_length=10, choices=PLATFORMS)
    provider = models.CharField(max_length=40, help_text="The kind of provider that serves it.")
    token = models.TextField()
    token_hash = models.UUIDField(unique=True, editable=False)
    token_kind = models.CharField(max_length=10, blank=True)
    app_id = models.CharField(max_length=255, blank=True)
    apns_environment = models.CharField(max_length=10, blank=True)
    app_version = models.CharField(max_length=40, blank=True)
    locale = models.CharField(max_length=35, blank=True)
    is_sandbox = models.BooleanField(default=False, editable=False)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    reason = models.CharField(max_length=40, blank=True, help_text="Why it was retired.")
    retired_at = models.DateTimeField(null=True, blank=True)
    registered_at = models.DateTimeField(help_text="When its app last reported this token: an older GONE is void.")
    last_seen_at = models.DateTimeField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.platform} ...{self.token[-4:]}"


class OnUncertain(models.TextChoices):
    DEFAULT = "", "by lane and channel"
    RETRY = "retry", "retry (may send twice)"
    PARK = "park", "park as unknown (may not send)"


class Category(models.Model):
    """A topic that a person can allow or refuse, per channel."""

    key = models.CharField(max_length=100, unique=True)
    name = models.CharField(max_length=100)
    description = models.CharField(max_length=500, blank=True)
    is_mandatory = models.BooleanField(default=False, help_text="Passes every preference; nobody can switch it off.")
    is_marketing = models.BooleanField(default=False)
    is_on_by_default = models.BooleanField(default=True, help_text="Off: only people who turned it on get it.")
    channels = ArrayField(models.CharField(max_length=5), default=all_channels)
    lane = models.CharField(max_length=8, choices=LANES, default=Lane.NORMAL.value)
    expires_after_s = models.IntegerField(null=True, blank=True, help_text="Empty: by lane.")
    on_uncertain = models.CharField(
        max_length=5,
        choices=OnUncertain.choices,
        default=OnUncertain.DEFAULT,
        blank=True,
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "categories"
        ordering = ["key"]

    def __str__(self) -> str:
        return self.key


class Preference(models.Model):
    """What a person chose for one category on one channel. No row: the category's default."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="preferences")
    category = models.ForeignKey(Category, on_delete=models.CASCADE)
    channel = models.CharField(max_length=5, choices=CHANNELS)
    is_on = models.BooleanField()
    source = models.CharField(max_length=40, default="api", help_text="Where the choice was made.")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "category", "channel"], name="people_preference_once"),
        ]

    def __str__(self) -> str:
        return f"{self.category} {self.channel} {'on' if self.is_on else 'off'}"


class SuppressionReason(models.TextChoices):
    BOUNCE = "bounce"
    COMPLAINT = "complaint"
    UNSUBSCRIBE = "unsubscribe"
    STOP = "stop"
    MANUAL = "manual"
    IMPORT = "import"


class Suppression(models.Model):
    """An address that gets nothing (or nothing of one category), whoever it belongs to.

    `address` is emptied when the person is erased; the keyed hash stays, else they would be written to again.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    channel = models.CharField(max_length=5, choices=CHANNELS)
    address = models.CharField(max_length=320, blank=True)
    address_hash = models.UUIDField(editable=False)
    reason = models.CharField(max_length=12, choices=SuppressionReason.choices)
    category = models.ForeignKey(Category, on_delete=models.CASCADE, null=True, blank=True)
    is_sandbox = models.BooleanField(default=False, editable=False)
    note = models.CharField(max_length=500, blank=True)
    source = models.CharField(max_length=100, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["address_hash", "channel", "category"],
                nulls_distinct=False,
                name="people_suppression_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.channel} ...{self.address[-4:]} ({self.reason})"


class Change(models.Model):
    """What this room tells the rooms above: one append-only row, written with the change itself."""

    at = models.DateTimeField(auto_now_add=True)
    kind = models.CharField(max_length=40)
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    subject = models.CharField(max_length=64, blank=True, help_text="The id of what changed.")
    source = models.CharField(max_length=100, blank=True)
    data = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"
