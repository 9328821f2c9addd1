#!/usr/bin/env python
"""Django's command line: `python manage.py up` starts everything."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        from django.core.management import execute_from_command_line
    except ImportError as error:
        raise SystemExit("Django is not installed in this Python. Run `make install`, then `make up`.") from error
    if sys.argv[1:2] == ["up"]:
        # The embedded servers and the demo's secrets must exist before the settings are read.
        from apps.console.supervisor import prepare_environment

        prepare_environment()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
