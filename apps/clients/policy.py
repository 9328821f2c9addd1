"""What a client may do, as a frozen value that outlives the query."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from apps.clients.models import Client


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """`categories` None: all. `ip_ranges` empty: from anywhere."""

    id: int
    name: str
    is_active: bool
    is_verified: bool
    scopes: frozenset[str]
    channels: frozenset[str]
    lanes: frozenset[str]
    categories: frozenset[str] | None
    senders: frozenset[str]
    may_send_inline: bool
    ip_ranges: tuple[IPv4Network | IPv6Network, ...]
    requests_per_minute: int
    recipients_per_day: int
    time_zone: str

    @classmethod
    def of(cls, client: Client) -> ClientPolicy:
        return cls(
            id=client.pk,
            name=client.name,
            is_active=client.is_active,
            is_verified=client.is_verified,
            scopes=frozenset(client.scopes),
            channels=frozenset(client.channels),
            lanes=frozenset(client.lanes),
            categories=None if client.categories is None else frozenset(client.categories),
            senders=frozenset(client.senders),
            may_send_inline=client.may_send_inline,
            ip_ranges=tuple(ip_network(text, strict=False) for text in client.ip_ranges),
            requests_per_minute=client.requests_per_minute,
            recipients_per_day=client.recipients_per_day,
            time_zone=client.time_zone,
        )

    def is_reachable_from(self, ip: str) -> bool:
        """Whether a request from `ip` may use the client's keys. "" (a Unix socket) counts as nowhere."""
        if not self.ip_ranges:
            return True
        try:
            address = ip_address(ip)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.ip_ranges)
