# SPDX-License-Identifier: Apache-2.0
import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.crypto.identity import (
    Identity,
    canonical_json,
    check_public_key,
    fingerprint,
    read_secret,
    verify,
    write_secret,
)
from ucadi.errors import ConfigError, NotAuthorizedError

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=4)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)
DOCUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.make(tmp_path_factory.mktemp("keys") / "identity.key")


@given(document=DOCUMENTS)
def test_what_was_signed_verifies_however_its_keys_are_ordered(identity: Identity, document: dict) -> None:
    signature = identity.sign("test", document)
    verify(identity.public_key, "test", dict(reversed(document.items())), signature)


@given(document=DOCUMENTS, other=DOCUMENTS)
def test_a_signature_fits_no_other_document(identity: Identity, document: dict, other: dict) -> None:
    signature = identity.sign("test", document)
    if canonical_json(document) != canonical_json(other):
        with pytest.raises(NotAuthorizedError) as caught:
            verify(identity.public_key, "test", other, signature)
        assert caught.value.code == "signature-invalid"


@given(document=DOCUMENTS)
def test_canonical_json_says_the_same_after_reading(document: dict) -> None:
    assert canonical_json(json.loads(canonical_json(document))) == canonical_json(document)


def test_a_signature_is_good_for_its_purpose_only(identity: Identity) -> None:
    signature = identity.sign("roster", {"a": 1})
    with pytest.raises(NotAuthorizedError):
        verify(identity.public_key, "invitation", {"a": 1}, signature)


def test_another_key_did_not_sign(identity: Identity, tmp_path: Path) -> None:
    other = Identity.make(tmp_path / "other.key")
    with pytest.raises(NotAuthorizedError):
        verify(other.public_key, "test", {}, identity.sign("test", {}))


@pytest.mark.parametrize("signature", [None, 7, "", "%%%", "AAAA", "é", ["x"]])
def test_what_is_no_signature_is_refused_in_the_same_words(identity: Identity, signature: object) -> None:
    with pytest.raises(NotAuthorizedError) as caught:
        verify(identity.public_key, "test", {}, signature)
    assert caught.value.code == "signature-invalid"


@pytest.mark.parametrize("key", [None, "", "AAAA", "no base64", base64.b64encode(bytes(33)).decode(), 5])
def test_what_is_no_public_key_is_refused(key: object) -> None:
    with pytest.raises(ValueError):
        check_public_key(key)


def test_values_that_json_has_not_are_refused(identity: Identity) -> None:
    for value in (float("nan"), float("inf"), {1, 2}, b"bytes"):
        with pytest.raises(ValueError):
            identity.sign("test", {"value": value})


def test_a_key_is_the_same_after_loading_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    made = Identity.make(path)
    assert Identity.load(path).public_key == made.public_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [child.name for child in tmp_path.iterdir()] == ["identity.key"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    Identity.make(tmp_path / "identity.key")
    (tmp_path / "identity.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        Identity.load(tmp_path / "identity.key")
    assert caught.value.code == "key-exposed"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    before = Identity.make(tmp_path / "identity.key").public_key
    with pytest.raises(ConfigError) as caught:
        Identity.make(tmp_path / "identity.key")
    assert caught.value.code == "output-exists"
    assert Identity.load(tmp_path / "identity.key").public_key == before


@pytest.mark.parametrize(
    "content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
)
def test_a_damaged_key_is_said(tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "identity.key", content)
    with pytest.raises(ConfigError) as caught:
        Identity.load(tmp_path / "identity.key")
    assert caught.value.code == "key-invalid"


def test_a_missing_key_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_secret(tmp_path / "identity.key")
    assert caught.value.code == "key-missing"


def test_a_draft_of_a_broken_attempt_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "identity.key.new").write_text("half a k")
    Identity.make(tmp_path / "identity.key")
    assert not (tmp_path / "identity.key.new").exists()


def test_the_text_of_an_identity_does_not_show_the_key(tmp_path: Path) -> None:
    identity = Identity.make(tmp_path / "identity.key")
    secret = (tmp_path / "identity.key").read_text().splitlines()[1]
    assert secret not in repr(identity)
    assert secret not in repr(vars(identity))


def test_a_fingerprint_is_eight_groups_that_differ_with_the_document() -> None:
    first, second = fingerprint({"key": "a"}), fingerprint({"key": "b"})
    assert [len(group) for group in first.split()] == [4] * 8
    assert first != second
    assert first == fingerprint({"key": "a"})
