# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from ucadi.engines.flare.job import write_job
from ucadi.engines.flare.kit import FlareApp, Kits, Role, check_kit, make_kits
from ucadi.engines.flare.process import check_port, free_port
from ucadi.errors import EngineError

APP = FlareApp("pack.Controller", "pack.Executor")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return make_kits(tmp_path_factory.mktemp("kits"), ["site-1", "site_2"], APP, port=18002)


@pytest.fixture
def site_kit(tmp_path: Path) -> Path:
    return make_kits(tmp_path / "kits", ["site-1"], APP, port=18002).sites["site-1"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_site_lets_a_job_build_one_class_only(kits: Kits) -> None:
    resources = read(kits.sites["site-1"] / "local/resources.json")
    assert resources["class_allow_list"] == ["pack.Executor"]
    assert resources["class_list_enforcement_mode"] == "enforce"


def test_coordinator_lets_a_job_build_one_class_only(kits: Kits) -> None:
    assert read(kits.coordinator / "local/resources.json")["class_allow_list"] == ["pack.Controller"]


def test_no_log_leaves_a_site(kits: Kits) -> None:
    resources = read(kits.sites["site-1"] / "local/resources.json")
    assert resources["allow_log_streaming"] is False
    assert {part["id"] for part in resources["components"]} == {
        "resource_manager",
        "resource_consumer",
        "process_launcher",
    }


def test_rights_are_to_submit_stop_and_view_for_the_driver_alone(kits: Kits) -> None:
    for folder in (kits.coordinator, *kits.sites.values()):
        roles = read(folder / "local/authorization.json")["permissions"]
        granted = {
            (role, right) for role, rights in roles.items() for right, who in rights.items() if who != "none"
        }
        assert granted == {("lead", "submit_job"), ("lead", "manage_job"), ("lead", "view")}


def test_unsigned_jobs_are_refused_at_both_sides(kits: Kits) -> None:
    assert read(kits.coordinator / "startup/fed_server.json")["require_signed_jobs"] is True
    for folder in kits.sites.values():
        assert read(folder / "startup/fed_client.json")["require_signed_jobs"] is True


def test_coordinator_of_this_machine_listens_on_the_loopback(kits: Kits) -> None:
    server = read(kits.coordinator / "startup/fed_server.json")["servers"][0]
    assert server["service"]["target"] == "127.0.0.1:18002"
    assert server["connection_security"] == "mtls"


def test_certificates_name_their_owners_and_share_one_root(kits: Kits) -> None:
    roots = set()
    for name, folder in kits.sites.items():
        certificate = x509.load_pem_x509_certificate((folder / "startup/client.crt").read_bytes())
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == name
        root = x509.load_pem_x509_certificate((folder / "startup/rootCA.pem").read_bytes())
        certificate.verify_directly_issued_by(root)
        roots.add(root.serial_number)
    assert len(roots) == 1


def test_private_keys_are_readable_by_their_owner_only_and_the_root_key_is_gone(kits: Kits) -> None:
    keys = list(kits.coordinator.parent.rglob("*.key"))
    assert len(keys) == 4
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
    private = [path for path in kits.coordinator.parent.rglob("*") if path.is_file() and path not in keys]
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in private)


def test_fresh_kits_pass_the_check(kits: Kits) -> None:
    assert check_kit(kits.coordinator).role is Role.COORDINATOR
    assert check_kit(kits.admin).role is Role.ADMIN
    assert check_kit(kits.sites["site_2"]).name == "site_2"


def test_site_may_write_its_own_settings(site_kit: Path) -> None:
    (site_kit / "local/ucadi.toml").write_text("data = 'here'")
    check_kit(site_kit)


@pytest.mark.parametrize(
    "path",
    ["local/resources.json", "local/authorization.json", "startup/fed_client.json", "startup/rootCA.pem"],
)
def test_changed_file_is_named(site_kit: Path, path: str) -> None:
    (site_kit / path).write_text((site_kit / path).read_text() + " ")
    with pytest.raises(EngineError, match=path) as caught:
        check_kit(site_kit)
    assert caught.value.code == "site-kit-altered"


@pytest.mark.parametrize("path", ["local/resources.json", "local/authorization.json", "kit.json"])
def test_missing_file_is_named(site_kit: Path, path: str) -> None:
    (site_kit / path).unlink()
    with pytest.raises(EngineError, match=path):
        check_kit(site_kit)


@pytest.mark.parametrize("path", ["local/custom/evil.py", "local/resources.json.default", "startup/new.json"])
def test_foreign_file_is_named(site_kit: Path, path: str) -> None:
    (site_kit / path).parent.mkdir(exist_ok=True)
    (site_kit / path).write_text("{}")
    with pytest.raises(EngineError, match="foreign file"):
        check_kit(site_kit)


def test_loosened_file_is_found_even_when_the_list_was_remade(site_kit: Path) -> None:
    import hashlib

    resources = read(site_kit / "local/resources.json") | {"class_list_enforcement_mode": "warn"}
    (site_kit / "local/resources.json").write_text(json.dumps(resources))
    card = read(site_kit / "kit.json")
    digest = hashlib.sha256((site_kit / "local/resources.json").read_bytes()).hexdigest()
    card["files"]["local/resources.json"] = digest
    (site_kit / "kit.json").write_text(json.dumps(card))
    with pytest.raises(EngineError, match="not hardened"):
        check_kit(site_kit)


@pytest.mark.parametrize("names", [["a b"], ["../x"], ["a", "A"], ["coordinator"], [""]])
def test_names_that_could_be_mixed_up_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="names must differ"):
        make_kits(tmp_path, names, APP, port=18002)


def test_folder_with_blanks_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="blanks or special letters"):
        make_kits(tmp_path / "my kits", ["site-1"], APP, port=18002)


def test_job_passes_a_site_nothing(tmp_path: Path) -> None:
    write_job(tmp_path / "job", APP, tmp_path / "run", num_sites=3)
    config = read(tmp_path / "job/app/config/config_fed_client.json")
    assert config["executors"] == [{"tasks": ["call"], "executor": {"path": "pack.Executor", "args": {}}}]
    assert not list((tmp_path / "job").rglob("*.py"))


def test_taken_port_is_said_in_one_sentence() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=f"Port {port} of this machine is in use") as caught:
            check_port(port)
    assert caught.value.code == "port-taken"
    check_port(free_port())


def test_site_offers_no_command_that_looks_into_its_machine() -> None:
    script = (
        "from ucadi.engines.flare.start import close_commands\n"
        "from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors as offered\n"
        "before = {type(p).__name__ for p in offered.request_processors}\n"
        "close_commands()\n"
        "after = {type(p).__name__ for p in offered.request_processors}\n"
        "print('ShellCommandProcessor' in before, after < before)\n"
        "looks = ('Shell', 'SysInfo', 'Report', 'Configure', 'Restart')\n"
        "print([name for name in after if name.startswith(looks)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True True", "[]"]
