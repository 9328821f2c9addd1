from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.sandbox.conftest import Sandbox, start
from tests.sandbox.wires import ApnsClient, alert, provider_token


@pytest.fixture
def apns(sandbox: Sandbox) -> Iterator[ApnsClient]:
    client = ApnsClient(sandbox)
    yield client
    client.close()


def magic(code: str) -> str:
    return f"5a0db0c5{code}" + uuid.uuid4().hex + "0" * 20


def test_a_push_is_accepted_with_its_id_echoed(sandbox: Sandbox, apns: ApnsClient) -> None:
    apns_id = str(uuid.uuid4())
    reply = apns.send(alert("d-9"), apns_id=apns_id, apns_collapse_id="order", apns_expiration="0")
    assert (reply.status, reply.headers["apns-id"], reply.body) == (200, apns_id, b"")
    (entry,) = sandbox.inbox("provider=apns")
    assert (entry["channel"], entry["to"], entry["delivery_id"]) == ("push", "ab" * 32, "d-9")
    assert entry["headers"]["apns-collapse-id"] == "order"
    assert "authorization" not in entry["headers"]
    assert entry["body"]["aps"]["alert"]["title"] == "On its way"


def test_an_id_is_made_when_none_was_sent(apns: ApnsClient) -> None:
    assert uuid.UUID(apns.send(alert(), apns_id="").headers["apns-id"])


def test_prior_knowledge_works_without_alpn(sandbox: Sandbox) -> None:
    client = ApnsClient(sandbox, alpn=False)
    assert client.send(alert()).status == 200
    client.close()


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"authorization": ""}, 403, "MissingProviderToken"),
        ({"authorization": "bearer nonsense"}, 403, "InvalidProviderToken"),
        ({"apns_topic": ""}, 400, "MissingTopic"),
        ({"apns_topic": "not a topic"}, 400, "BadTopic"),
        ({"apns_push_type": "shout"}, 400, "InvalidPushType"),
        ({"apns_push_type": "voip"}, 400, "TopicDisallowed"),
        ({"apns_priority": "7"}, 400, "BadPriority"),
        ({"apns_push_type": "background", "apns_priority": "10"}, 400, "BadPriority"),
        ({"apns_expiration": "tomorrow"}, 400, "BadExpirationDate"),
        ({"apns_collapse_id": "x" * 65}, 400, "BadCollapseId"),
        ({"apns_id": "not-a-uuid"}, 400, "BadMessageId"),
        ({"method": "PUT"}, 405, "MethodNotAllowed"),
        ({"path": "/3/devices/x"}, 404, "BadPath"),
        ({"path": "/3/device/"}, 400, "MissingDeviceToken"),
        ({"device": "abc"}, 400, "BadDeviceToken"),
        ({"device": "zz" * 32}, 400, "BadDeviceToken"),
    ],
)
def test_a_rule_that_is_broken_is_named(apns: ApnsClient, headers: dict, status: int, reason: str) -> None:
    reply = apns.send(alert(), **headers)
    assert (reply.status, reply.json) == (status, {"reason": reason})


def test_background_pushes_default_to_the_priority_they_need(apns: ApnsClient) -> None:
    assert apns.send({"aps": {"content-available": 1}}, apns_push_type="background").status == 200


def payload_of(size: int) -> bytes:
    shell = b'{"aps":{"alert":""}}'
    return shell.replace(b'""', b'"' + b"x" * (size - len(shell)) + b'"')


@pytest.mark.parametrize(
    ("size", "headers", "status"),
    [
        (4096, {}, 200),
        (4097, {}, 413),
        (60_000, {}, 413),
        (5120, {"apns_push_type": "voip", "apns_topic": "com.example.shop.voip"}, 200),
        (5121, {"apns_push_type": "voip", "apns_topic": "com.example.shop.voip"}, 413),
    ],
)
def test_payload_sizes_are_enforced_to_the_byte(apns: ApnsClient, size: int, headers: dict, status: int) -> None:
    assert len(payload_of(size)) == size
    assert apns.send(payload_of(size), **headers).status == status


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"{}", b"[" * 4000, b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(apns: ApnsClient, body: bytes) -> None:
    reply = apns.send(body)
    assert (reply.status, reply.json["reason"]) == (400, "PayloadEmpty")


def test_provider_tokens_are_checked_by_key_team_and_age(sandbox: Sandbox) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    now = time.time()
    for token, reason in (
        (provider_token(sandbox.tls_dir, key=other.decode()), "InvalidProviderToken"),
        (provider_token(sandbox.tls_dir, kid="OTHERKEY00"), "InvalidProviderToken"),
        (provider_token(sandbox.tls_dir, claims={"iss": "OTHERTEAM0"}), "InvalidProviderToken"),
        (provider_token(sandbox.tls_dir, iat=now + 600), "InvalidProviderToken"),
        (provider_token(sandbox.tls_dir, iat=now - 3700), "ExpiredProviderToken"),
    ):
        client = ApnsClient(sandbox, token=token)
        reply = client.send(alert())
        assert (reply.status, reply.json["reason"]) == (403, reason)
        client.close()


def test_a_second_new_token_on_one_connection_comes_too_soon(sandbox: Sandbox, apns: ApnsClient) -> None:
    assert apns.send(alert()).status == 200
    first, apns.token = apns.token, provider_token(sandbox.tls_dir, iat=time.time() - 60)
    reply = apns.send(alert())
    assert (reply.status, reply.json["reason"]) == (429, "TooManyProviderTokenUpdates")
    apns.token = first
    assert apns.send(alert()).status == 200


def test_strict_tokens_look_at_all_connections_together(tmp_path) -> None:
    sandbox = start(tmp_path, "--strict-tokens")
    try:
        first = ApnsClient(sandbox)
        assert first.send(alert()).status == 200
        second = ApnsClient(sandbox, token=provider_token(tmp_path, iat=time.time() - 60))
        assert second.send(alert()).json["reason"] == "TooManyProviderTokenUpdates"
        third = ApnsClient(sandbox, token=first.token)
        assert third.send(alert()).status == 200
    finally:
        sandbox.stop()


def test_magic_tokens(sandbox: Sandbox, apns: ApnsClient) -> None:
    assert apns.send(alert(), device=magic("0200")).status == 200
    assert apns.send(alert(), device=magic("0400")).json == {"reason": "BadDeviceToken"}
    gone = apns.send(alert(), device=magic("0410"))
    assert (gone.status, gone.json["reason"]) == (410, "Unregistered")
    assert abs(gone.json["timestamp"] - time.time() * 1000) < 5000
    throttled = magic("0429")
    replies = [apns.send(alert(), device=throttled) for _ in range(3)]
    assert [reply.status for reply in replies] == [429, 429, 200]
    assert replies[0].json["reason"] == "TooManyRequests"
    assert len(sandbox.inbox("channel=push")) == 2


def test_many_streams_at_once_with_large_payloads_all_get_their_own_answer(sandbox: Sandbox, apns: ApnsClient) -> None:
    streams = []
    for n in range(300):
        while apns.h2.outbound_flow_control_window < 4096 or apns.h2.open_outbound_streams > 900:
            apns.read()
        streams.append(apns.open(alert(f"d-{n}", fill="x" * 3800)))
    assert {apns.answer(stream).status for stream in streams} == {200}
    assert sorted(line[0] for line in sandbox.ledger()) == sorted(f"d-{n}" for n in range(300))


def test_the_limit_of_streams_is_announced(tmp_path) -> None:
    sandbox = start(tmp_path, "--apns-max-streams", "7")
    try:
        client = ApnsClient(sandbox)
        assert client.send(alert()).status == 200
        assert client.h2.remote_settings.max_concurrent_streams == 7
    finally:
        sandbox.stop()


def test_error_bodies_go_on_beyond_the_first_window_of_the_connection(apns: ApnsClient) -> None:
    for _ in range(30):  # 3,000 bodies of 27 bytes: more than the 65,535 that the window begins with
        streams = [apns.open(alert(), device="abc") for _ in range(100)]
        assert {apns.answer(stream).status for stream in streams} == {400}
        apns.events.clear()


def test_a_client_that_speaks_something_else_is_cut_off(sandbox: Sandbox, apns: ApnsClient) -> None:
    apns.socket.sendall(b"\0\0\x04\x01\x04\0\0\0\0junk")  # HEADERS on stream 0
    with pytest.raises(ConnectionError):
        while True:
            apns.read()
    fresh = ApnsClient(sandbox)
    assert fresh.send(alert()).status == 200
    fresh.close()
