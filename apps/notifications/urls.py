from django.urls import path

from apps.notifications.api import hooks, sending

urlpatterns = [
    path("v1/notifications", sending.Send.as_view()),
    path("v1/notifications/batch", sending.SendBatch.as_view()),
    path("v1/notifications/<uuid:id>/cancel", sending.Cancel.as_view()),
    path("hooks/<slug:kind>/<slug:account>", hooks.hook),
]
