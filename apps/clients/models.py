"""Who may send: the product teams' applications and their keys."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models

from apps.encryption import EncryptedTextField
from notifier.message import Channel, Lane, Mode

MODES = [(mode.value, mode.value) for mode in Mode]


class Scope(models.TextChoices):
    SEND = "send"
    READ = "read"
    USERS = "users"
    TEMPLATES = "templates"
    CAMPAIGNS = "campaigns"
    WEBHOOKS = "webhooks"


def all_scopes() -> list[str]:
    return list(Scope.values)


def all_channels() -> list[str]:
    return [channel.value for channel in Channel]


def default_lanes() -> list[str]:
    return [Lane.NORMAL.value]


class Client(models.Model):
    """One product team's application: what it may do, and how much of it."""

    name = models.CharField(max_length=100, unique=True)
    is_active = models.BooleanField(default=True, help_text="Off: every request of this client is refused.")
    is_verified = models.BooleanField(default=False, help_text="Off: reaches sandbox recipients only.")
    scopes = ArrayField(models.CharField(max_length=20), default=all_scopes)
    channels = ArrayField(models.CharField(max_length=10), default=all_channels)
    lanes = ArrayField(models.CharField(max_length=10), default=default_lanes)
    categories = ArrayField(
        models.CharField(max_length=100),
        null=True,
        blank=True,
        help_text="Keys of the allowed categories; empty: all.",
    )
    senders = ArrayField(models.CharField(max_length=320), default=list, blank=True)
    may_send_inline = models.BooleanField(default=False, help_text="May send content that is no template.")
    ip_ranges = ArrayField(models.CharField(max_length=50), default=list, blank=True)
    requests_per_minute = models.IntegerField(default=3000, validators=[MinValueValidator(1)])
    recipients_per_day = models.IntegerField(default=1_000_000, validators=[MinValueValidator(1)])
    time_zone = models.CharField(max_length=64, default="UTC")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class AppKey(models.Model):
    """The public half of a credential; names a client and a mode."""

    app_key = models.CharField(max_length=64, primary_key=True)
    client = models.ForeignKey(Client, on_delete=models.CASCADE, related_name="keys")
    mode = models.CharField(max_length=4, choices=MODES)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["client", "app_key"]

    def __str__(self) -> str:
        return self.app_key


class AppSecret(models.Model):
    """The secret half: shown once, stored encrypted, because a signed request needs it back. Two may be active."""

    key = models.ForeignKey(AppKey, on_delete=models.CASCADE, related_name="secrets")
    secret = EncryptedTextField()
    hint = models.CharField(max_length=4, help_text="The last four characters.")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"...{self.hint}"
