from django.apps import AppConfig


class TemplatesConfig(AppConfig):
    name = "apps.templates"
    label = "templates"
    default_auto_field = "django.db.models.BigAutoField"
