from django.apps import AppConfig
from django.core.signals import request_finished


class ClientsConfig(AppConfig):
    name = "apps.clients"
    label = "clients"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from apps.clients.services import write_uses

        request_finished.connect(write_uses, dispatch_uid="clients.write_uses")
