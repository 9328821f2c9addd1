"""Why was it sent, or why not: the gates in order, as far as the delivery came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from notifier.lifecycle import OPEN
from notifier.stages.gates import GATES

PROVIDER = "provider"
_BEFORE_PROVIDER = "address"


def gate_names() -> list[str]:
    """Every gate in the order they are asked; the choice of a provider comes once there is somebody to send to."""
    names = [name for name, _ in GATES]
    names.insert(names.index(_BEFORE_PROVIDER) + 1, PROVIDER)
    return names


def decisions(delivery: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`{"gate", "result": pass|stop|wait}`, with `code` where it stopped and `value` where one was seen.

    `delivery` is a row of `deliveries.one_delivery`. Nothing is asked again: it is what was seen at the time. A
    `pass` names only what was frozen with the delivery.
    """
    at, result = _where_it_stands(delivery)
    said: list[dict[str, Any]] = []
    for gate in gate_names():
        if gate == at:
            said.append(_stopped(delivery, gate, result))
            break
        value = _passed_with(delivery, gate)
        if gate == PROVIDER and value is None:
            break  # none was chosen yet, or none was needed
        said.append({"gate": gate, "result": "pass"} | ({} if value is None else {"value": value}))
    return said


def _where_it_stands(delivery: Mapping[str, Any]) -> tuple[str, str]:
    """(gate, result) of the one that said no, or not now; empty when every gate so far let it pass."""
    if delivery["stored_state"] not in OPEN:
        return delivery["stopped_by"], "stop"
    waiting = "" if delivery["is_leased"] else delivery["waiting"] or ""
    if waiting.endswith("_paused"):
        # An account on hold waits with the provider's word; the claim that saw the hold wrote down which gate it was.
        is_provider = waiting == "provider_paused" and delivery["stopped_by"] != "hold"
        return PROVIDER if is_provider else "hold", "wait"
    if waiting == "rate_limited" or waiting.startswith("provider_"):
        return PROVIDER, "wait"
    return "", ""


def _stopped(delivery: Mapping[str, Any], gate: str, result: str) -> dict[str, Any]:
    said = {"gate": gate, "result": result}
    if result == "wait":
        return said | {"value": delivery["waiting"]}
    said["code"] = delivery["reason"]
    return said if delivery["seen"] is None else said | {"value": delivery["seen"]}


def _passed_with(delivery: Mapping[str, Any], gate: str) -> Any:
    if gate == "mode":
        return delivery["mode"]
    if gate == "preference":
        return {"category": delivery["category"], "channel": delivery["channel"]}
    if gate == PROVIDER:
        return delivery["provider"]
    return None
