"""The people's part of the API: one file per thing."""
