"""Provider accounts: what the engine needs of them, and the checks before one is saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from django.conf import settings

from apps.providers.models import AccountStatus, ProviderAccount
from notifier.ledger import Account
from notifier.limits import Away, store
from notifier.outcome import Callback, Receipt
from notifier.providers.base import ConfigurationError, Provider, Surroundings
from notifier.providers.registry import PROVIDERS, provider_class
from notifier.stages.breaker import Sickness
from notifier.stages.dispatch import make_provider
from notifier.stages.sickroom import known

ENV_PREFIX = "env:"


def engine_accounts() -> list[Account]:
    """Every account as the engine's frozen value, secrets resolved. One statement."""
    return [as_engine(account) for account in ProviderAccount.objects.order_by("id")]


def as_engine(account: ProviderAccount) -> Account:
    return Account(
        id=account.pk,
        name=account.name,
        kind=account.kind,
        settings=resolved(account),
        weight=account.weight,
        platforms=frozenset(account.platforms),
        countries=frozenset(account.countries),
        is_sandbox=account.is_sandbox,
        is_active=account.status == AccountStatus.ACTIVE and account.kind in PROVIDERS,
        hook_url=hook_url(account),
        revision=account.updated_at.isoformat() if account.updated_at else "",
    )


def hook_url(account: ProviderAccount) -> str:
    return f"{settings.PUBLIC_URL}/hooks/{account.kind}/{account.name}"


def resolved(account: ProviderAccount) -> Mapping[str, Any]:
    """Settings and secrets together, `env:NAME` pointers followed; one that points nowhere stays empty."""
    values = {**account.settings, **account.secrets}
    return {
        name: os.environ.get(value.removeprefix(ENV_PREFIX), "")
        if isinstance(value, str) and value.startswith(ENV_PREFIX)
        else value
        for name, value in values.items()
    }


def check(account: ProviderAccount) -> None:
    """Raise ConfigurationError when the account cannot work, naming the field and the mend. No network call."""
    if account.kind not in PROVIDERS:
        raise ConfigurationError(
            f"kind: there is no provider {account.kind!r}; there are {', '.join(sorted(PROVIDERS))}"
        )
    secret = {field.name for field in fields(provider_class(account.kind).Settings) if field.metadata.get("secret")}
    in_the_open = sorted(name for name in account.settings if name in secret)
    if in_the_open:
        raise ConfigurationError(f"settings: {', '.join(in_the_open)} is a secret; put it under secrets")
    listener(account)


def set_status(account: ProviderAccount, status: AccountStatus, reason: str = "") -> None:
    """Pause the account, or let it be chosen again. Every process knows it within 2 s."""
    account.status, account.reason = status.value, reason[:200]
    account.save(update_fields=["status", "reason", "updated_at"])


def sickness(accounts: Sequence[ProviderAccount]) -> dict[int, Sickness | None]:
    """Which accounts the workers leave alone, by id; None: it is well. Empty while Redis is away."""
    try:
        return known(store(settings.LIMITS_URL), [as_engine(account) for account in accounts])
    except Away:
        return {}


def listener(account: ProviderAccount) -> Provider:
    """The account's provider without any client: for checking settings and reading callbacks, not for sending."""
    return make_provider(
        as_engine(account), Surroundings(carrier=None, hook_url=hook_url(account), account_name=account.name)
    )


def account_for_hook(kind: str, name: str) -> ProviderAccount | None:
    """The account that callbacks to /hooks/<kind>/<name> are for; paused ones still hear of what they sent."""
    return ProviderAccount.objects.filter(kind=kind, name=name).first()


def read_callback(account: ProviderAccount, callback: Callback) -> list[Receipt] | None:
    """The receipts in a provider's callback; None when its signature is not the provider's."""
    provider = listener(account)
    return provider.receipts(callback) if provider.verify(callback) else None
