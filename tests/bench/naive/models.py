from __future__ import annotations

from django.db import models


class Notification(models.Model):
    """The device's token comes with the request: this side is spared looking people up, and rendering."""

    user = models.CharField(max_length=128)
    token = models.TextField()
    title = models.CharField(max_length=200)
    body = models.TextField()
    status = models.CharField(max_length=10, default="queued", db_index=True)
    provider_ref = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return str(self.pk)
