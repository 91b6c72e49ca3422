# SPDX-License-Identifier: Apache-2.0
import re
import tomllib
from pathlib import Path

import pytest

from site_homes import ADDRESS, make_home
from ucadi.config import Policy, PolicyFile, SiteFile, SiteSettings, load_config
from ucadi.errors import ConfigError, StoreError
from ucadi.workflows.site_home import POLICY_TEXT, SiteHome, site_text


def test_a_folder_without_settings_is_no_home(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError) as caught:
            SiteHome.open(folder)
        assert caught.value.code == "site-home-missing"


def test_a_home_opens_by_a_relative_path_and_keeps_absolute_ones(tmp_path, monkeypatch):
    home = make_home(tmp_path)
    monkeypatch.chdir(home.folder.parent)
    opened = SiteHome.open(Path(home.folder.name))
    assert opened.folder == home.folder
    assert opened.read_settings().site.cohort == home.folder / "cohort"
    state = opened.open_state()
    assert state.plans() == ()
    state.close()
    assert home.state_file.stat().st_mode & 0o077 == 0, "only its owner may read it"


def test_written_settings_are_read_as_they_were(tmp_path):
    own = SiteSettings(cohort=tmp_path / 'a "b" ü', cache=tmp_path / "c\\d", threads=3, labels="none")
    path = tmp_path / "site.toml"
    for address in (None, ADDRESS):
        path.write_text(site_text(own, address))
        assert load_config(SiteFile, path) == SiteFile(config_version=1, site=own, coordinator=address)


def test_the_policy_of_a_new_site_is_the_documented_default_and_asks(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY_TEXT)
    policy = load_config(PolicyFile, path).policy
    assert policy == Policy()
    assert policy.approve == "ask"


def test_the_policy_of_a_new_site_names_every_rule(tmp_path):
    lines = [line.lstrip("# ") for line in POLICY_TEXT.splitlines()]
    for name in Policy.model_fields:
        assert any(line.startswith((f"{name} =", f"[policy.{name}]")) for line in lines), name


def test_the_lines_of_the_policy_that_are_commented_out_can_be_used(tmp_path):
    text = re.sub(
        r"^# (max_epochs|\[policy\.hours\]|start|end|days|time_zone)", r"\1", POLICY_TEXT, flags=re.M
    )
    policy = PolicyFile.model_validate(tomllib.loads(text)).policy
    assert policy.max_epochs == 5
    assert policy.hours is not None
    assert policy.hours.time_zone == "Europe/Rome"


def test_a_site_without_a_policy_or_with_a_damaged_memory_says_so(tmp_path):
    home = make_home(tmp_path)
    home.policy_file.unlink()
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        home.read_policy()
    home.state_file.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError):
        home.open_state()
