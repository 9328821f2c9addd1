"""Small clients that speak to the sandbox as a vendor's customer would, sharing nothing with the adapters."""

from __future__ import annotations

import json
import socket
import ssl
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset

from tests.sandbox.conftest import Reply, Sandbox

TWILIO = "/2010-04-01/Accounts/AC00000000000000000000000000000000/Messages.json"
TWILIO_BASIC = "Basic QUMwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDpzYW5kYm94LWF1dGgtdG9rZW4="
FCM = "/v1/projects/notifier-sandbox/messages:send"
DEVICE = "ab" * 32


# FCM


def service_account(sandbox: Sandbox) -> dict[str, Any]:
    return json.loads((sandbox.tls_dir / "fcm-service-account.json").read_text())


def fcm_assertion(sandbox: Sandbox, **changes: Any) -> str:
    account = service_account(sandbox)
    now = int(time.time())
    claims = {
        "iss": account["client_email"],
        "aud": account["token_uri"],
        "iat": now,
        "exp": now + 3600,
        "scope": "https://www.googleapis.com/auth/firebase.messaging",
        **changes,
    }
    return jwt.encode(claims, account["private_key"], algorithm="RS256")


def fcm_exchange(sandbox: Sandbox, assertion: str) -> Reply:
    form = urlencode({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion})
    return sandbox.request("POST", "/token", form.encode(), {"Content-Type": "application/x-www-form-urlencoded"})


def fcm_bearer(sandbox: Sandbox) -> str:
    return fcm_exchange(sandbox, fcm_assertion(sandbox)).json["access_token"]


def fcm_send(sandbox: Sandbox, message: Any, **more: Any) -> Reply:
    headers = {"Authorization": f"Bearer {fcm_bearer(sandbox)}", "Content-Type": "application/json"}
    return sandbox.request("POST", FCM, {"message": message, **more}, headers)


# Twilio and SendGrid


def twilio_send(sandbox: Sandbox, authorization: str = TWILIO_BASIC, **form: str) -> Reply:
    form = {"To": "+15005550006", "From": "+15005550006", "Body": "Your code is 123456", **form}
    headers = {"Authorization": authorization, "Content-Type": "application/x-www-form-urlencoded"}
    return sandbox.request("POST", TWILIO, urlencode({k: v for k, v in form.items() if v}).encode(), headers)


def mail_to(*addresses: str, **changes: Any) -> dict[str, Any]:
    return {
        "personalizations": [
            {"to": [{"email": address}], "custom_args": {"delivery_id": f"d-{address}"}} for address in addresses
        ],
        "from": {"email": "shop@example.com", "name": "Shop"},
        "subject": "Your order",
        "content": [
            {"type": "text/plain", "value": "It is on its way"},
            {"type": "text/html", "value": "<b>On its way</b>"},
        ],
        **changes,
    }


def sendgrid_send(sandbox: Sandbox, mail: Any, key: str = "SG.main.sandbox") -> Reply:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return sandbox.request("POST", "/v3/mail/send", mail, headers)


# APNs


def provider_token(tls_dir: Path, *, iat: float | None = None, key: str = "", **changes: Any) -> str:
    claims = {"iss": "SANDBOXTEAM", "iat": int(time.time() if iat is None else iat), **changes.pop("claims", {})}
    headers = {"kid": "SANDBOXKEY", **changes}
    return jwt.encode(claims, key or (tls_dir / "apns.p8").read_text(), algorithm="ES256", headers=headers)


class ApnsClient:
    """One HTTP/2 connection, read until an answer is complete."""

    def __init__(self, sandbox: Sandbox, *, token: str = "", alpn: bool = True) -> None:
        self.token = token or provider_token(sandbox.tls_dir)
        context = ssl.create_default_context(cafile=str(sandbox.tls_dir / "ca.pem"))
        if alpn:
            context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", sandbox.apns_port), timeout=10)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()
        self.events: list[Event] = []

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open(self, payload: Any, device: str = DEVICE, path: str = "", method: str = "POST", **headers: str) -> int:
        """Send a request without waiting. Header names with _ for -; an empty value leaves the header out."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        stream = self.h2.get_next_available_stream_id()
        fields = {
            ":method": method,
            ":scheme": "https",
            ":authority": "localhost",
            ":path": path or f"/3/device/{device}",
            "authorization": f"bearer {self.token}",
            "apns-topic": "com.example.shop",
            "apns-push-type": "alert",
            "apns-id": str(uuid.uuid4()),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self.h2.send_headers(stream, [(name, value) for name, value in fields.items() if value], end_stream=not body)
        for start in range(0, len(body), 16384):
            self.h2.send_data(stream, body[start : start + 16384], end_stream=start + 16384 >= len(body))
        self.flush()
        return stream

    def read(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        for event in self.h2.receive_data(data):
            if isinstance(event, DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.events.append(event)
        self.flush()

    def answer(self, stream: int) -> Reply:
        """Raises ConnectionError when the stream is reset."""
        while True:
            mine = [event for event in self.events if getattr(event, "stream_id", None) == stream]
            if reset := next((event for event in mine if isinstance(event, StreamReset)), None):
                raise ConnectionError(f"reset {reset.error_code}")
            if any(isinstance(event, StreamEnded) for event in mine):
                response = next(event for event in mine if isinstance(event, ResponseReceived))
                headers = {str(k): str(v) for k, v in response.headers}
                body = b"".join(event.data for event in mine if isinstance(event, DataReceived))
                return Reply(int(headers[":status"]), headers, body)
            self.read()

    def send(self, payload: Any, device: str = DEVICE, **headers: str) -> Reply:
        return self.answer(self.open(payload, device, **headers))

    def goaway(self) -> ConnectionTerminated:
        while True:
            for event in self.events:
                if isinstance(event, ConnectionTerminated):
                    return event
            self.read()

    def close(self) -> None:
        self.socket.close()


def alert(delivery_id: str = "d-1", **more: Any) -> dict[str, Any]:
    return {"aps": {"alert": {"title": "On its way", "body": "Order A-1001"}}, "_n": {"d": delivery_id}, **more}
