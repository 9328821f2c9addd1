"""What is done to people: one function per thing that can happen, each in one transaction with its Change rows."""

from apps.people.services.addresses import add_address, change_address, remove_address, retire_address
from apps.people.services.devices import register_device, remove_device, retire_device
from apps.people.services.preferences import set_preferences
from apps.people.services.suppressions import lift_suppression, suppress
from apps.people.services.users import PutResult, put_user, put_users

__all__ = [
    "PutResult",
    "add_address",
    "change_address",
    "lift_suppression",
    "put_user",
    "put_users",
    "register_device",
    "remove_address",
    "remove_device",
    "retire_address",
    "retire_device",
    "set_preferences",
    "suppress",
]
