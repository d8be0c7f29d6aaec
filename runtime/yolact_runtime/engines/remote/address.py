"""Addresses of models on a server, which are given where the path of an engine is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from yolact_runtime.errors import UsageError, without_secrets

# The port of each scheme if the address has none: Triton's own, and that of TLS.
_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
# `Path` makes one slash of two.
_ADDRESS = re.compile(r"(grpcs?|https?):/{1,2}(?=[^/])", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """A model on a server; as text, it has no credentials.

    Attributes:
        scheme: "grpc", "http", or these with TLS: "grpcs", "https".
        host, port: Of the server.
        model: Its name there.
        version: A number as text; empty for the one that the server chooses.
        credentials: "user:password", or empty.
    """

    scheme: str
    host: str
    port: int
    model: str
    version: str = ""
    credentials: str = field(default="", repr=False)

    def __str__(self) -> str:
        version = f"/{self.version}" if self.version else ""
        return f"{self.scheme}://{self.authority}/{self.model}{version}"

    @property
    def authority(self) -> str:
        """Host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme.endswith("s")


def is_address(engine: str | Path) -> bool:
    """Whether an engine is named by an address on a server, and not by a path."""
    return _ADDRESS.match(os.fspath(engine)) is not None


def parse_address(engine: str | Path) -> Address:
    """The parts of `grpc://host:8001/model` or `http://host:8000/model/version`.

    Raises:
        UsageError: it has another form.
    """
    text = _ADDRESS.sub(lambda match: f"{match[1].lower()}://", os.fspath(engine), count=1)
    wrong = UsageError(
        f"engine {without_secrets(text)}: SCHEME://HOST:PORT/MODEL or SCHEME://HOST:PORT/MODEL/VERSION is"
        " needed, such as grpc://localhost:8001/yolact; % escapes stand for special characters of a password"
    )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # a port that is no number, half a pair of brackets, or an empty part of a host
        raise wrong from None
    match = re.fullmatch(r"/([\w.-]{1,200})(?:/([0-9]{1,18}))?/?", parts.path, re.ASCII)
    if not host or re.search(r"\s", host) or port == 0 or not match or parts.query or parts.fragment:
        raise wrong
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    credentials = f"{user}:{password}" if user or password else ""
    return Address(parts.scheme, host, port or _PORTS[parts.scheme], match[1], match[2] or "", credentials)


def engine_name(engine: str | Path) -> str:
    """A short name of an engine: of its file, or of the model on a server."""
    return parse_address(engine).model if is_address(engine) else Path(engine).name
