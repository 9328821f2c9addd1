import gc

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    name = "apps.console"
    label = "console"
    verbose_name = "Console"

    def ready(self) -> None:
        """The last of the apps: from here on there is garbage, and nothing of what was imported is any.

        Frozen, that is never looked at again, and a worker's children share more of it with their parent.
        """
        gc.freeze()
        gc.enable()
