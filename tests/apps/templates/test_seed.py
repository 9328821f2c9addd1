from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from apps.clients.callers import credentials
from apps.clients.models import AppSecret
from apps.console.management.commands.seed import read_environment
from apps.console.seeds.demo import PEOPLE
from apps.console.seeds.templates import SEEDS
from apps.people.models import Address, Category, Device, User
from apps.providers.models import ProviderAccount
from apps.templates import services
from apps.templates.models import TemplateVersion
from notifier.sandbox.keys import load_keys, write_service_account
from notifier.stages.render import render, sms_segments

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def sandbox_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sandbox")
    keys = load_keys(directory, host="127.0.0.1")
    write_service_account(directory, keys, token_uri="http://127.0.0.1:8100/token")
    return directory


@pytest.fixture
def seed(sandbox_keys: Path, tmp_path: Path, settings: Any) -> Any:
    settings.DEMO = True
    settings.METRICS_TOKEN = "metrics"
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one takes a second

    def run(**options: Any) -> dict[str, str]:
        path = tmp_path / "demo.env"
        call_command(
            "seed",
            demo_env=str(path),
            sandbox_dir=str(options.pop("sandbox_dir", sandbox_keys)),
            sandbox_url=options.pop("sandbox_url", "http://127.0.0.1:8100"),
            admin_password="secret of the tests",
            stdout=io.StringIO(),
            **options,
        )
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        return read_environment(path)

    return run


def test_the_demo_file_holds_a_key_that_works(seed: Any) -> None:
    written = seed(url="http://127.0.0.1:8000")
    assert set(written) == {
        "NOTIFIER_URL",
        "NOTIFIER_APP_KEY",
        "NOTIFIER_APP_SECRET",
        "SANDBOX_URL",
        "ADMIN_USER",
        "ADMIN_PASSWORD",
        "METRICS_TOKEN",
    }
    credential = credentials.get(written["NOTIFIER_APP_KEY"])
    assert credential is not None
    assert written["NOTIFIER_APP_SECRET"] in credential.secrets
    assert credential.caller.client.is_verified
    assert get_user_model().objects.get(username="admin").check_password(written["ADMIN_PASSWORD"])


def test_seeding_again_changes_nothing(seed: Any) -> None:
    first = seed()
    rows = [Category, User, Address, Device, ProviderAccount, TemplateVersion, AppSecret]
    before = [model.objects.count() for model in rows]
    touched = dict(ProviderAccount.objects.values_list("name", "updated_at"))
    User.objects.filter(external_id="ada").update(locale="fr")
    assert seed() == first
    assert [model.objects.count() for model in rows] == before
    assert dict(ProviderAccount.objects.values_list("name", "updated_at")) == touched
    assert User.objects.get(external_id="ada").locale == "fr"


def test_a_lost_file_gets_further_secrets_and_never_more_than_two_live_ones(seed: Any, tmp_path: Path) -> None:
    secrets = []
    for _ in range(4):
        secrets.append(seed()["NOTIFIER_APP_SECRET"])
        (tmp_path / "demo.env").unlink()
    assert len(set(secrets)) == 4
    live = [row.secret for row in AppSecret.objects.filter(revoked_at=None)]
    assert sorted(live) == sorted(secrets[-2:])


def test_all_recipients_and_accounts_belong_to_the_sandbox(seed: Any) -> None:
    seed()
    assert User.objects.count() == len(PEOPLE)
    assert not Address.objects.filter(is_sandbox=False).exists()
    assert not Device.objects.filter(is_sandbox=False).exists()
    accounts = ProviderAccount.objects.all()
    assert {account.is_sandbox for account in accounts} == {True, False}
    assert all("127.0.0.1" in str(account.settings) for account in accounts)


def test_accounts_follow_the_sandbox_to_another_port_and_keep_what_an_operator_set(seed: Any) -> None:
    seed()
    ProviderAccount.objects.filter(name="twilio-main").update(status="paused", weight=7)
    seed(sandbox_url="http://127.0.0.1:9999", sandbox_smtp_port=9998)
    account = ProviderAccount.objects.get(name="twilio-main")
    assert (account.settings["base_url"], account.status, account.weight) == ("http://127.0.0.1:9999", "paused", 7)
    assert ProviderAccount.objects.get(name="smtp-main").settings["port"] == 9998


def test_without_the_sandboxs_keys_nothing_is_seeded(seed: Any, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="start it first"):
        seed(sandbox_dir=tmp_path / "nowhere")
    assert not Category.objects.exists()


def test_it_refuses_outside_a_demo(settings: Any) -> None:
    settings.DEMO = False
    with pytest.raises(CommandError, match="DEMO=1"):
        call_command("seed")


@pytest.mark.parametrize("key", SEEDS)
@pytest.mark.parametrize("locale", ["en", "ko"])
def test_every_template_renders_on_every_channel(seed: Any, key: str, locale: str) -> None:
    seed()
    version = services.published(key)
    assert version is not None
    for channel in ("push", "sms", "email"):
        assert version.compiled.resolve(channel, locale) == locale
        content = render(version.compiled, channel, locale, version.sample_data)
        assert "[[" not in str(content) and "{{" not in str(content)
    sms = render(version.compiled, "sms", locale, version.sample_data)
    assert sms_segments(sms.text)[1] <= 2


def test_the_readmes_data_is_enough_for_its_template(seed: Any) -> None:
    from apps.rest.validation import Errors

    seed()
    version = services.published("order-shipped")
    assert version is not None
    errors = Errors()
    data = {"order": {"id": "A-1001", "eta": "2026-11-25"}}
    services.check_data(version, ["push", "sms", "email"], data, (None, "data"), errors)
    assert not errors.items
    assert render(version.compiled, "push", "en", data).body == "Order A-1001 arrives on Wednesday, 25 November."
