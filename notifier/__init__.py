"""The engine: verbs on frozen values. No Django models, no HTTP views; imports nothing of `apps` or `config`."""
