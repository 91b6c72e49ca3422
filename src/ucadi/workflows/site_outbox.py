# SPDX-License-Identifier: Apache-2.0
"""Replies on disk before they leave, and a line in the site's list for each message that does."""

import contextlib
import errno
import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from ucadi.errors import StoreError
from ucadi.federation.plans import Protection, RoundPlan
from ucadi.federation.ports import ReplyKey
from ucadi.io.checkpoint import write_bytes
from ucadi.logs import event, get_logger
from ucadi.store.site_state import KeptReply, SiteState

__all__ = ["SiteOutbox"]

_LOG = get_logger("workflows.site_outbox")

_SUFFIX = ".reply"
_KEPT_S = 30 * 86400.0
"""Replies of runs that never went on are dropped after this time."""
_STRAY_S = 3600.0
"""A file that the database does not know is left alone so long: another process may be about to name it."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class SiteOutbox:
    """Keeps the replies of each run's current round in a folder, checked by hash.

    Args:
        folder: For the replies; made when it is missing.
        state: The site's memory.
        recipient: Who gets what leaves, for the list.
    """

    def __init__(self, folder: Path, state: SiteState, recipient: str = "coordinator") -> None:
        self._folder = folder
        self._state = state
        self._recipient = recipient

    def recall(self, key: ReplyKey) -> bytes | None:
        """Return the reply that was kept for a request; None when there is none or it was damaged since."""
        kept = self._state.kept_reply(_name(key))
        if kept is None:
            return None
        try:
            body = (self._folder / kept.name).read_bytes()
        except OSError as error:
            body, fault = b"", f"{error.strerror or error}"
        else:
            if hashlib.sha256(body).hexdigest() == kept.sha256:
                return body
            fault = "its hash is another one"
        event(_LOG, "kept reply is damaged and made anew", file=kept.name, detail=fault)
        self._drop(kept)
        return None

    def keep(self, key: ReplyKey, body: bytes | bytearray) -> None:
        """Keep a reply and drop those of the run's earlier rounds; on disk when this returns.

        Raises:
            StoreError: ``disk-full``, or what the database raises.
        """
        name, now = _name(key), time.time()
        try:
            for old in self._state.old_replies(key.run_id, key.round, now - _KEPT_S):
                self._drop(old)  # first: on a small disk the new reply needs their space
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_strays(now)
            write_bytes(self._folder / name, body)
            (self._folder / name).chmod(0o600)
            _sync(self._folder)
        except OSError as error:
            code = "disk-full" if error.errno in _DISK_ERRORS else "file-error"
            words = f"A reply of {len(body)} bytes cannot be kept in {self._folder}: {error.strerror}."
            raise StoreError(code, words) from error
        self._state.keep_reply(KeptReply(name, key.run_id, key.round, hashlib.sha256(body).hexdigest(), now))

    def note(self, kind: str, plan: RoundPlan | None, body: bytes | bytearray) -> None:
        """Write down that a message leaves the site.

        Raises:
            StoreError: If it cannot be written down; then the message must not leave.
        """
        is_update = plan is not None and kind == "update"
        request = f"{plan.run.hash}/{plan.round}/{plan.model_hash}" if plan else ""
        self._state.note_sent(
            kind,
            len(body),
            hashlib.sha256(body).hexdigest(),
            run_id=plan.run_id if plan else "",
            round_number=plan.round if plan else 0,
            request=hashlib.sha256(request.encode()).hexdigest(),
            protection=plan.run.protection if plan and is_update else Protection.PLAINTEXT,
            recipient=self._recipient,
        )

    def _drop(self, kept: KeptReply) -> None:
        """Forget a reply, then delete its file."""
        self._state.drop_reply(kept.name)
        (self._folder / kept.name).unlink(missing_ok=True)

    def _drop_strays(self, now: float) -> None:
        """Delete files of a process that was killed, or of an approval that was taken back."""
        known = self._state.reply_names()
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name not in known and path.stat().st_mtime < now - _STRAY_S:
                    path.unlink()


def _name(key: ReplyKey) -> str:
    """Return the name of a reply's file: nothing that a coordinator chose stands in it."""
    text = json.dumps(asdict(key), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40] + _SUFFIX


def _sync(folder: Path) -> None:
    """Make sure that a new name in a folder survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
