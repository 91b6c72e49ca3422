# SPDX-License-Identifier: Apache-2.0
"""Addresses of application entities, as ``dicom://TITLE@host:port``."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ucadi.errors import ConfigError
from ucadi.pacs.server import is_loopback

__all__ = ["Peer", "is_title", "parse_peer"]

_TITLE = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?")  # printable ASCII without backslash
_PORTS = {"dicom": 104, "dicoms": 2762}


@dataclass(frozen=True)
class Peer:
    """An application entity.

    Attributes:
        title: Its AE title.
        host: Its name or address.
        port: Its port.
        is_encrypted: Whether it speaks TLS.
    """

    title: str
    host: str
    port: int
    is_encrypted: bool


def is_title(text: str) -> bool:
    """Return whether a text is an AE title: up to 16 printable characters."""
    return _TITLE.fullmatch(text) is not None


def parse_peer(url: str, *, allow_plain: bool) -> Peer:
    """Read an address like ``dicom://TITLE@host:port``, or ``dicoms://`` for TLS.

    Args:
        url: The address.
        allow_plain: Whether images may go to another machine unencrypted.

    Raises:
        ConfigError: ``pacs-address`` for one that is not of this form; ``pacs-insecure``.
    """
    try:
        parts = urlsplit(url)
        title, host = unquote(parts.username or ""), parts.hostname or ""
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, LookupError):
        title = host = ""
    if not (is_title(title) and host) or parts.password or parts.path.strip("/") or parts.query:
        raise ConfigError("pacs-address", "The address is not of the form dicom://TITLE@host:port.")
    if parts.scheme == "dicom" and not (is_loopback(host) or allow_plain):
        raise ConfigError("pacs-insecure", f"The way to {host} is not encrypted.")
    return Peer(title, host, port, parts.scheme == "dicoms")
