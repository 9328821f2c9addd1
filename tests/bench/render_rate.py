"""How long rendering takes: CPU microseconds per render of a push and of a 30-line email, cold, cached, memoised.

Run: .venv/bin/python tests/bench/render_rate.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from notifier.stages.render import Compiled, compile_inline, missing_variables, render
from notifier.stages.render import _shared_derived_text as shared_derived_text
from notifier.stages.render import _shared_part as shared_part

ROWS = "\n".join(f"<tr><td>Row {n}</td><td>{{{{ order.line{n} }}}}</td></tr>" for n in range(12))
EMAIL = f"""<!doctype html><html><body style="font-family:sans-serif">
<h1>Hello {{{{ user.name }}}}</h1>
<p>Order {{{{ order.id }}}} is on its way and arrives on {{{{ order.eta }}}}.</p>
<table>
{ROWS}
{{% for item in order.items %}}<tr><td>{{{{ item.name }}}}</td><td>{{{{ item.quantity }}}}</td></tr>
{{% endfor %}}</table>
{{% if order.note %}}<p>Note: {{{{ order.note }}}}</p>{{% endif %}}
<p>Total: {{{{ order.total | round: 2 }}}} {{{{ order.currency | upcase }}}}</p>
<p><a href="{{{{ order.url }}}}">Follow it</a></p>
<p>Thank you,</p>
<p>the shop</p>
</body></html>"""
CHANNELS = {
    "push": {"en": {"title": "Order {{ order.id }} is on its way", "body": "It arrives on {{ order.eta }}."}},
    "sms": {"en": {"text": "Order {{ order.id }} is on its way and arrives on {{ order.eta }}."}},
    "email": {"en": {"subject": "Order {{ order.id }} is on its way", "html": EMAIL}},
}
DATA = {
    "user": {"name": "Ada & Co"},
    "order": {
        **{f"line{n}": f"value {n}" for n in range(12)},
        "id": "A-1001",
        "eta": "2026-11-25",
        "total": 12.5,
        "currency": "eur",
        "url": "https://shop.example.com/o/A-1001",
        "items": [{"name": f"Thing {n}", "quantity": n} for n in range(5)],
    },
}


def cpu_us(work: Callable[[], object], at_least_s: float = 0.5) -> float:
    count, began = 0, time.process_time()
    while time.process_time() - began < at_least_s:
        for _ in range(20):
            work()
        count += 20
    return (time.process_time() - began) / count * 1e6


def main() -> None:
    compiled = Compiled(1, CHANNELS, "en")

    def cold(channel: str) -> None:
        shared_part.cache_clear()
        shared_derived_text.cache_clear()
        render(Compiled(1, CHANNELS, "en"), channel, "en", DATA)

    inline = {"push": {"title": "Hello", "body": "Nothing to fill in"}}
    print(f"{'':24}{'cold':>10}{'cached':>10}   us CPU per render")
    for channel in CHANNELS:
        hot = cpu_us(lambda channel=channel: render(compiled, channel, "en", DATA))  # type: ignore[misc]
        print(f"{channel:24}{cpu_us(lambda channel=channel: cold(channel)):10.1f}{hot:10.1f}")  # type: ignore[misc]
    print(f"{'inline push':24}{cpu_us(lambda: render(compile_inline(inline), 'push', 'en', DATA)):10.1f}")
    for channel in CHANNELS:
        asked = cpu_us(lambda channel=channel: missing_variables(compiled, [channel], DATA))  # type: ignore[misc]
        print(f"{'variables of ' + channel:24}{'':10}{asked:10.1f}")


if __name__ == "__main__":
    main()
