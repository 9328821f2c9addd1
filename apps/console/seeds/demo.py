"""The demo's company: who sends, who receives, what about, and the provider accounts, all of them the sandbox's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.clients.models import Client, Scope
from apps.people import services as people
from apps.people.devices import DEVICE
from apps.people.models import Category, User
from apps.providers import services as providers
from apps.providers.models import ProviderAccount
from apps.rest.validation import Errors
from notifier.message import Channel, Lane

CLIENT = "Demo shop"

CATEGORIES: dict[str, dict[str, Any]] = {
    "security": {
        "name": "Security",
        "description": "Sign-in codes and warnings. Always on.",
        "is_mandatory": True,
        "lane": Lane.CRITICAL.value,
    },
    "orders": {"name": "Orders", "description": "What happens to an order.", "lane": Lane.NORMAL.value},
    "offers": {
        "name": "Offers",
        "description": "Weekly offers, for those who asked for them.",
        "is_marketing": True,
        "is_on_by_default": False,
        "lane": Lane.BULK.value,
    },
    "news": {"name": "News", "description": "News of the shop.", "is_marketing": True, "lane": Lane.BULK.value},
}


@dataclass(frozen=True, slots=True)
class Person:
    """Everybody is a sandbox recipient; what their addresses do is in the API's documentation."""

    id: str
    name: str
    locale: str
    time_zone: str
    country: str
    email: str
    phone: str
    devices: tuple[dict[str, str], ...]
    takes_offers: bool = False

    @property
    def values(self) -> dict[str, Any]:
        return {
            "email": f"{self.email}@sandbox.invalid",
            "phone": self.phone,
            "locale": self.locale,
            "time_zone": self.time_zone,
            "country": self.country,
            "attributes": {"name": self.name},
        }


def _apple(platform: str, person: str, code: str = "0200") -> dict[str, str]:
    token = f"5a0db0c5{code}{person.encode().hex()}".ljust(64, "0")
    app = {"app_id": "com.example.juniper", "apns_environment": "production"}
    return {"platform": platform, "token": token, "app_version": "3.2.0", **app}


def _android(person: str, word: str = "ok") -> dict[str, str]:
    return {"platform": "android", "token": f"sandbox-{word}-{person}", "app_version": "3.2.0"}


PEOPLE = (
    Person(
        "ada", "Ada Park", "en", "Europe/London", "GB", "delivered+ada", "+15005550006",
        (_apple("ios", "ada"), _android("ada")), takes_offers=True,
    ),
    Person(
        "minji", "Minji Kim", "ko", "Asia/Seoul", "KR", "delivered+minji", "+15005551001",
        (_android("minji"),), takes_offers=True,
    ),
    Person(
        "grace", "Grace Osei", "en-US", "America/New_York", "US", "throttled+grace", "+15005551002",
        (_apple("ios", "grace"), _apple("macos", "grace-desk")),
    ),
    Person(
        "linus", "Linus Berg", "en", "Europe/Helsinki", "FI", "slow+linus", "+15005551003",
        (_android("linus", "throttled"),), takes_offers=True,
    ),
    Person(
        "junho", "Junho Lee", "ko", "Asia/Seoul", "KR", "bounced+junho", "+15005550009",
        (_android("junho", "unregistered"),),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where the sandbox process listens, and where it keeps the keys that it made."""

    url: str
    directory: Path
    apns_port: int
    smtp_port: int

    def read(self, name: str) -> str:
        """Raises OSError when the sandbox has never run."""
        return (self.directory / name).read_text().strip()

    def accounts(self) -> dict[str, dict[str, Any]]:
        """By name: kind, weight, settings, secrets. Each twice, for real recipients and for sandbox ones."""
        found: dict[str, dict[str, Any]] = {}
        host = self.url.split("://")[-1].split(":")[0].split("/")[0]
        ca_file = str((self.directory / "ca.pem").resolve())
        sender = "Juniper <hello@juniper.example.com>"
        for role in ("main", "sandbox"):
            found[f"fcm-{role}"] = {
                "kind": "fcm",
                "settings": {"base_url": self.url},
                "secrets": {"service_account": self.read("fcm-service-account.json")},
            }
            found[f"jpush-{role}"] = {
                "kind": "jpush",
                "settings": {"app_key": "5a0db0c5" + "0" * 16, "base_url": self.url},
                "secrets": {"master_secret": "sandbox-master-secret"},
            }
            found[f"pushy-{role}"] = {
                "kind": "pushy",
                "settings": {"base_url": self.url},
                "secrets": {"api_key": "sandbox-pushy-key"},
            }
            found[f"apns-{role}"] = {
                "kind": "apns",
                "settings": {
                    "key_id": "SANDBOXKEY",
                    "team_id": "SANDBOXTEAM",
                    "topic": "com.example.juniper",
                    "base_url": f"https://{host}:{self.apns_port}",
                    "ca_file": ca_file,
                },
                "secrets": {"key": self.read("apns.p8")},
            }
            found[f"twilio-{role}"] = {
                "kind": "twilio",
                "settings": {"account_sid": "AC" + "0" * 32, "sender": "+15005559900", "base_url": self.url},
                "secrets": {"auth_token": "sandbox-auth-token"},
            }
            found[f"sendgrid-{role}"] = {
                "kind": "sendgrid",
                "settings": {
                    "sender": sender,
                    "base_url": self.url,
                    "webhook_public_key": self.read("sendgrid-public.txt"),
                },
                "secrets": {"api_key": f"SG.sendgrid-{role}.sandbox"},
            }
            found[f"smtp-{role}"] = {
                "kind": "smtp",
                "weight": 25,
                "settings": {
                    "host": host,
                    "port": self.smtp_port,
                    "security": "starttls",
                    "username": f"smtp-{role}",
                    "sender": sender,
                    "bounce_domain": "bounces.juniper.example.com",
                    "ca_file": ca_file,
                },
                "secrets": {"password": "sandbox", "bounce_key": "of-the-demo-no-secret"},
            }
        return found


def seed_categories() -> None:
    for key, values in CATEGORIES.items():
        Category.objects.get_or_create(key=key, defaults=values)


def seed_client() -> Client:
    """May everything, without limits that a load test would meet."""
    client, _ = Client.objects.get_or_create(
        name=CLIENT,
        defaults={
            "is_verified": True,
            "may_send_inline": True,
            "scopes": list(Scope.values),
            "channels": [channel.value for channel in Channel],
            "lanes": [lane.value for lane in Lane],
            "categories": None,
            "senders": ["Juniper <hello@juniper.example.com>", "hello@juniper.example.com", "+15005559900"],
            "requests_per_minute": 100_000_000,
            "recipients_per_day": 1_000_000_000,
        },
    )
    return client


def seed_people() -> None:
    """Those who are not there yet: what happened to the others since is theirs."""
    known = set(
        User.objects.filter(external_id__in=[person.id for person in PEOPLE]).values_list("external_id", flat=True)
    )
    for person in PEOPLE:
        if person.id in known:
            continue
        people.put_user(person.id, person.values, source="seed")
        for device in person.devices:
            errors = Errors()
            values = DEVICE.parse(dict(device), None, errors)
            errors.raise_if_any()
            people.register_device(person.id, values, source="seed")
        if person.takes_offers:
            channels = {channel.value: True for channel in Channel}
            people.set_preferences(person.id, choices={"offers": channels}, source="seed")


def seed_accounts(sandbox: Sandbox) -> None:
    """Point every account at the sandbox as it runs now. Weights, pauses and reasons stay as they are."""
    for name, wanted in sandbox.accounts().items():
        account = ProviderAccount.objects.filter(name=name).first() or ProviderAccount(
            name=name, kind=wanted["kind"], weight=wanted.get("weight", 100), is_sandbox=name.endswith("-sandbox")
        )
        if account.pk and account.settings == wanted["settings"] and account.secrets == wanted["secrets"]:
            continue
        account.settings, account.secrets = wanted["settings"], wanted["secrets"]
        account.save()
        providers.check(account)  # one that cannot work undoes the whole seed
