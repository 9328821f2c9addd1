from django.urls import path

from apps.notifications.api import hooks, reading, sending

urlpatterns = [
    path("v1/notifications", reading.Notifications.as_view()),
    path("v1/notifications/batch", sending.SendBatch.as_view()),
    path("v1/notifications/<uuid:id>", reading.OneNotification.as_view()),
    path("v1/notifications/<uuid:id>/cancel", sending.Cancel.as_view()),
    path("v1/deliveries", reading.Deliveries.as_view()),
    path("v1/deliveries/<uuid:id>", reading.OneDelivery.as_view()),
    path("hooks/<slug:kind>/<slug:account>", hooks.hook),
]
