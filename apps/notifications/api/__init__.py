"""The notifications' endpoints: sending, reading, and the providers' hooks."""
