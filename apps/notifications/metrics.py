"""What this room counts for Prometheus, in the process where it happens."""

from __future__ import annotations

from prometheus_client import Counter

ACCEPTED = Counter("notifier_notifications_accepted", "Notifications accepted.", ["mode", "lane"])
DUPLICATES = Counter("notifier_notifications_duplicate", "Requests recognised as duplicates.", ["by"])
RINGS = Counter("notifier_rings", "Deliveries rung for by this process.", ["result"])
RECORDED = Counter("notifier_results_recorded", "Results recorded.", ["channel", "outcome"])
LATE = Counter("notifier_results_late", "Results that came after their lease was given to another.", ["channel"])
LEASES_EXPIRED = Counter("notifier_leases_expired", "Leases that ended without a result.", ["channel"])
RECEIPTS = Counter("notifier_receipts", "Receipts, by what became of them.", ["outcome"])
HOOKS_REFUSED = Counter("notifier_hooks_refused", "Callbacks whose signature was not the provider's.", ["account"])
