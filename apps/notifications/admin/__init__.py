"""Screens: what happened. All rows but holds are the engine's, so there is nothing to edit here, only to see."""

from apps.notifications.admin import deliveries, engine, holds, notifications

__all__ = ["deliveries", "engine", "holds", "notifications"]
