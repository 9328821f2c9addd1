"""One process that speaks the providers' own wire protocols on loopback: `python -m notifier.sandbox`.

It imports nothing of the rest of the tree and is written from the vendors' documents, so that it cannot
repeat an adapter's mistakes. It accepts no message for a real person: nothing leaves this process but
receipts to the configured hooks.
"""
