from __future__ import annotations

import requests
from celery import shared_task
from django.conf import settings
from django.utils import timezone

from tests.bench.naive.models import Notification

session = requests.Session()


@shared_task
def send(pk: int) -> None:
    notification = Notification.objects.get(pk=pk)
    answer = session.post(
        f"{settings.PROVIDER_URL}/v1/projects/bench/messages:send",
        json={
            "message": {
                "data": {"n_id": str(notification.pk)},
                "notification": {"title": notification.title, "body": notification.body},
                "token": notification.token,
            }
        },
        headers={"Authorization": "Bearer bench"},
        timeout=10,
    )
    answer.raise_for_status()
    notification.status = "sent"
    notification.provider_ref = answer.json()["name"]
    notification.sent_at = timezone.now()
    notification.save()
