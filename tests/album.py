"""A bucket of photos on a server that speaks S3."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Album:
    """A bucket in which somebody keeps photos: `s3://album/ada`, beside things that are not hers."""

    client: Any

    def put(self, key: str, content: bytes) -> None:
        """Put an object below `ada/`."""
        self.client.put_object(Bucket="album", Key=f"ada/{key}", Body=content)

    def damage(self, key: str) -> None:
        """Change a byte of the stored content behind the server's back, as a dying disk does."""
        from moto.s3.models import s3_backends

        (backend,) = [one["global"] for one in s3_backends.values() if "album" in one["global"].buckets]
        stored = backend.buckets["album"].keys[f"ada/{key}"]
        stored._value_buffer.seek(0)
        stored._value_buffer.write(b"?")
