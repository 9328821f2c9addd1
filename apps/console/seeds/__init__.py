"""The demo's data: what `manage.py seed` writes. Nothing of it is meant for production."""
