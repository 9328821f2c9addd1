"""Through whom: one file per provider, found by its kind through `registry`."""
