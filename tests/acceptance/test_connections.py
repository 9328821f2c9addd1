"""Who is connected to the providers: the children that send, never the process that they were forked from."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from apps.console.supervisor import procfile
from tests.acceptance.stack import Stack
from tests.acceptance.test_stack import arrived, send

WORKERS = [name for name, command in procfile().items() if "celery worker" in command]
_ESTABLISHED = "01"


def far_ports(pid: int) -> set[int]:
    """The ports at the far ends of the TCP connections that the process holds open."""
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, _, far, state, _, _, _, _, _, inode, *_ = line.split()
            if state == _ESTABLISHED and f"socket:[{inode}]" in held:
                found.add(int(far.rpartition(":")[2], 16))
    return found


def test_no_connection_to_a_provider_is_open_before_the_fork(stack: Stack) -> None:
    apns = int(stack.environment["SANDBOX_APNS_PORT"])
    sandbox = {apns, int(stack.environment["SANDBOX_PORT"]), int(stack.environment["SANDBOX_SMTP_PORT"])}
    stack.restart("push", "sms", "email")  # a connection that nobody uses is closed after a while: look at young ones
    notification = send(stack)
    entries = stack.wait_for(partial(arrived, stack, notification), "the messages in the sandbox", within_s=90)
    assert {entry["channel"] for entry in entries} == {"push", "sms", "email"}

    parent, *children = stack.pids("push")
    assert parent == stack.fleet["push"].pid
    assert any(apns in far_ports(child) for child in children)
    assert {name: far_ports(stack.pids(name)[0]) & sandbox for name in WORKERS} == {name: set() for name in WORKERS}
