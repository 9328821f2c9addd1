"""What is said: templates, and the frozen versions that notifications name."""

from __future__ import annotations

from django.db import models


class Template(models.Model):
    """A message under a key. What is sent is its published version."""

    key = models.CharField(max_length=100, unique=True)
    name = models.CharField(max_length=200, blank=True)
    published = models.ForeignKey(
        "TemplateVersion",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        editable=False,
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["key"]

    def __str__(self) -> str:
        return self.key


class TemplateVersion(models.Model):
    """One wording, never changed once made: per channel and locale, e.g. `{"sms": {"en": {"text": "..."}}}`."""

    template = models.ForeignKey(Template, on_delete=models.CASCADE, related_name="versions")
    number = models.IntegerField()
    category_key = models.CharField(max_length=100)
    default_locale = models.CharField(max_length=35, default="en")
    channels = models.JSONField()
    data_schema = models.JSONField(default=dict, blank=True)
    sample_data = models.JSONField(default=dict, blank=True)
    digest = models.UUIDField(help_text="Of the content: an equal PUT makes no new version.")
    created_by = models.CharField(max_length=150, blank=True)
    why = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    published_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["template", "-number"]
        constraints = [models.UniqueConstraint(fields=["template", "number"], name="templates_version_once")]

    def __str__(self) -> str:
        return f"{self.template.key} v{self.number}"
