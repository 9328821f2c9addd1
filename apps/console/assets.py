"""Where the admin's files are served from: as they lie, or as `collectstatic` has laid them out."""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage


class Assets(CompressedManifestStaticFilesStorage):  # type: ignore[misc] # WhiteNoise has no types
    """Names with a hash, compressed, once `collectstatic` has written its list of them; until then the plain names.

    Django's own raises for every file while there is no list, which the demo and the tests never have. It must be the
    storage before there is one all the same: `collectstatic` is what writes it.
    """

    def stored_name(self, name: str) -> str:
        return str(super().stored_name(name)) if self.hashed_files else name
