"""Addresses of the people's part of the API."""

from __future__ import annotations

from django.urls import path

from apps.people.api.addresses import Addresses, OneAddress
from apps.people.api.devices import Devices, OneDevice
from apps.people.api.preferences import Categories, OneCategory, Preferences
from apps.people.api.suppressions import OneSuppression, Suppressions
from apps.people.api.users import BulkUsers, OneUser, Users

urlpatterns = [
    path("v1/users", Users.as_view(), name="users"),
    path("v1/users/bulk", BulkUsers.as_view(), {"user_id": "bulk"}, name="users-bulk"),
    path("v1/users/<str:user_id>", OneUser.as_view(), name="user"),
    path("v1/users/<str:user_id>/devices", Devices.as_view(), name="devices"),
    path("v1/users/<str:user_id>/devices/<uuid:device_id>", OneDevice.as_view(), name="device"),
    path("v1/users/<str:user_id>/addresses", Addresses.as_view(), name="addresses"),
    path("v1/users/<str:user_id>/addresses/<uuid:address_id>", OneAddress.as_view(), name="address"),
    path("v1/users/<str:user_id>/preferences", Preferences.as_view(), name="preferences"),
    path("v1/suppressions", Suppressions.as_view(), name="suppressions"),
    path("v1/suppressions/<uuid:suppression_id>", OneSuppression.as_view(), name="suppression"),
    path("v1/categories", Categories.as_view(), name="categories"),
    path("v1/categories/<str:key>", OneCategory.as_view(), name="category"),
]
