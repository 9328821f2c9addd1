from __future__ import annotations

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tests.bench.naive.models import Notification
from tests.bench.naive.tasks import send


class NotificationSerializer(serializers.ModelSerializer[Notification]):
    class Meta:
        model = Notification
        fields = ["id", "user", "token", "title", "body", "status"]
        read_only_fields = ["id", "status"]


class Notifications(APIView):
    """One notification, or a list of them: a row and a task for each."""

    def post(self, request: Request) -> Response:
        many = isinstance(request.data, list)
        serializer = NotificationSerializer(data=request.data, many=many)
        serializer.is_valid(raise_exception=True)
        saved = serializer.save()
        for notification in saved if many else [saved]:
            send.delay(notification.pk)
        return Response(serializer.data, status=202)
