"""Through whom: our accounts with the providers."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models

from apps.encryption import EncryptedJSONField


class AccountStatus(models.TextChoices):
    ACTIVE = "active"
    PAUSED = "paused"


class ProviderAccount(models.Model):
    """One account with one provider. `kind` is checked against the registry, so a new provider needs no migration."""

    name = models.SlugField(max_length=60, unique=True, help_text="In hook URLs, metrics and attempts.")
    kind = models.CharField(max_length=40)
    settings = models.JSONField(default=dict, blank=True)
    secrets = EncryptedJSONField(default=dict, blank=True, help_text="Values, or env:NAME pointers.")
    weight = models.IntegerField(default=100, validators=[MinValueValidator(0)])
    platforms = ArrayField(
        models.CharField(max_length=10),
        default=list,
        blank=True,
        help_text="Empty: all it serves.",
    )
    countries = ArrayField(
        models.CharField(max_length=2),
        default=list,
        blank=True,
        help_text="Empty: all.",
    )
    is_sandbox = models.BooleanField(
        default=False,
        help_text="Serves test mode and sandbox recipients, nothing else.",
    )
    status = models.CharField(max_length=6, choices=AccountStatus.choices, default=AccountStatus.ACTIVE)
    reason = models.CharField(max_length=200, blank=True, help_text="Why it is paused.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
