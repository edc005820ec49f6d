"""What a server takes, how long it works on it, and where it is reached."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from pcl_clora.config import Config, ConfigError
from pcl_clora.io import POINT_SUFFIXES

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TYPES: tuple[str, ...] = POINT_SUFFIXES


class ServeSettings(Config):
    """Limits and address of a server."""

    host: str = "127.0.0.1"  # address to listen on; that of this machine only
    port: NonNegativeInt = Field(7860, le=65535)  # 0 for any that is free
    token: str = ""  # what every request has to show; "" for none
    hostnames: tuple[str, ...] = ()  # names by which the server may be asked; on the loopback its own
    app: bool = True  # whether the page for people is there too, which needs gradio
    max_upload_mib: PositiveFloat = 64.0  # of a request
    max_points: PositiveInt = 1_000_000  # of a cloud
    max_waiting_points: PositiveInt = 4_000_000  # of all clouds in memory
    max_disk_mib: PositiveFloat = 1024.0  # of files that the page for people keeps
    types: tuple[str, ...] = TYPES  # endings of files
    timeout_s: PositiveFloat = 30.0  # of a request, from its first byte
    queue: PositiveInt = 64  # requests that are worked on or wait
    batch: PositiveInt = 16  # clouds that go through the model together
    wait_ms: NonNegativeFloat = 2.0  # that a cloud waits for others, if the model is free
    readers: PositiveInt = 2  # processes that read files

    @field_validator("types", mode="before")
    @classmethod
    def _check_types(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            return given
        found = [f".{str(one).lower().lstrip('.')}" for one in given]
        wrong = [one for one in found if one not in TYPES]
        if wrong or not found:
            raise ConfigError(
                f"types={', '.join(wrong) or 'nothing'} cannot be served; choose from {', '.join(TYPES)}."
            )
        return tuple(found)

    @property
    def max_bytes(self) -> int:
        """Bytes of an upload."""
        return int(self.max_upload_mib * 2**20)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK

    def takes(self, name: str) -> bool:
        """Whether files of this name are taken."""
        return Path(name).suffix.lower() in self.types
