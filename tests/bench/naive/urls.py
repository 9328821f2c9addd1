from __future__ import annotations

from django.urls import path

from tests.bench.naive.views import Notifications

urlpatterns = [path("notifications", Notifications.as_view())]
