# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from ucadi.engines.flare.job import write_job
from ucadi.engines.flare.kit import (
    FlareApp,
    Kits,
    Papers,
    Role,
    bar_sites,
    check_kit,
    make_kits,
    make_site_kit,
)
from ucadi.engines.flare.process import check_port, free_port
from ucadi.errors import EngineError

APP = FlareApp("pack.Controller", "pack.Executor")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return make_kits(tmp_path_factory.mktemp("kits"), ["site-1", "site_2"], APP, port=18002)


@pytest.fixture(scope="module")
def other_kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return make_kits(tmp_path_factory.mktemp("other-kits"), ["site-1"], APP, port=18002)


@pytest.fixture
def site_kit(other_kits: Kits, tmp_path: Path) -> Path:
    return Path(shutil.copytree(other_kits.sites["site-1"], tmp_path / "site-1"))


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


def granted(kit: Path) -> set[tuple[str, str]]:
    roles = read(kit / "local/authorization.json")["permissions"]
    return {(role, right) for role, rights in roles.items() for right, who in rights.items() if who != "none"}


def test_rights_are_to_submit_stop_and_view_for_the_driver_alone(kits: Kits) -> None:
    everywhere = {("lead", "submit_job"), ("lead", "manage_job"), ("lead", "view")}
    for folder in kits.sites.values():
        assert granted(folder) == everywhere
    # and at the coordinator, to keep revoked sites out
    assert granted(kits.coordinator) == everywhere | {("lead", "disable_client"), ("lead", "enable_client")}


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


def papers_of(kit: Path) -> Papers:
    startup = kit / "startup"
    return Papers(
        (startup / "client.crt").read_text(),
        (startup / "client.key").read_bytes(),
        (startup / "rootCA.pem").read_text(),
    )


def test_a_site_on_another_machine_connects_to_the_host_and_the_coordinator_listens_for_it(
    tmp_path: Path,
) -> None:
    kits = make_kits(tmp_path / "kits", ["site-1"], APP, port=18002, host="hub.example.org")
    site = read(kits.sites["site-1"] / "startup/fed_client.json")["servers"][0]
    assert site["service"]["target"] == "hub.example.org:18002"
    assert site["identity"] == "coordinator"
    # FLARE listens on all addresses unless the target is a loopback address.
    coordinator = read(kits.coordinator / "startup/fed_server.json")["servers"][0]
    assert coordinator["service"]["target"] == "hub.example.org:18002"
    certificate = x509.load_pem_x509_certificate((kits.coordinator / "startup/server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example.org"]


def test_a_kit_is_replaced_whole(site_kit: Path) -> None:
    papers = papers_of(site_kit)
    (site_kit / "local/resources.json").write_text("{}")
    made = make_site_kit(site_kit, "site-1", papers, APP, host="hub.example.org", port=18003)
    card = check_kit(made)
    assert (card.host, card.port) == ("hub.example.org", 18003)
    assert list(site_kit.parent.iterdir()) == [site_kit]


@pytest.mark.parametrize("fault", ["name", "key", "authority", "no certificate"])
def test_papers_that_do_not_belong_together_are_refused_before_the_engine_sees_them(
    kits: Kits, site_kit: Path, tmp_path: Path, fault: str
) -> None:
    own, other, foreign = (papers_of(kit) for kit in (kits.sites["site-1"], kits.sites["site_2"], site_kit))
    papers = {
        "name": other,
        "key": dataclasses.replace(own, key=other.key),
        "authority": dataclasses.replace(own, authority=foreign.authority),
        "no certificate": dataclasses.replace(own, certificate="nothing"),
    }[fault]
    with pytest.raises(EngineError) as caught:
        make_site_kit(tmp_path / "kit", "site-1", papers, APP, host="127.0.0.1", port=18002)
    assert caught.value.code == "not-authorized"
    assert not (tmp_path / "kit").exists()


def test_papers_do_not_show_the_key(site_kit: Path) -> None:
    assert "PRIVATE" not in repr(papers_of(site_kit))


def test_all_files_of_a_kit_are_its_owners_alone(site_kit: Path) -> None:
    for path in site_kit.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_key_that_others_may_read_is_refused(site_kit: Path) -> None:
    (site_kit / "startup/client.key").chmod(0o644)
    with pytest.raises(EngineError, match="chmod 600") as caught:
        check_kit(site_kit)
    assert caught.value.code == "key-exposed"


@pytest.mark.parametrize("change", [{"host": "evil.example.org"}, {"port": 1}, {"coordinator": "evil"}])
def test_a_card_that_names_another_coordinator_is_found(site_kit: Path, change: dict[str, object]) -> None:
    (site_kit / "kit.json").write_text(json.dumps(read(site_kit / "kit.json") | change))
    with pytest.raises(EngineError, match="not hardened"):
        check_kit(site_kit)


def test_barred_sites_are_listed_as_the_engine_reads_them(other_kits: Kits) -> None:
    bar_sites(other_kits.coordinator, {"b", "a"})
    assert read(other_kits.coordinator / "disabled_clients.json") == {"disabled_clients": ["a", "b"]}
    check_kit(other_kits.coordinator)


def test_job_passes_a_site_nothing(tmp_path: Path) -> None:
    write_job(tmp_path / "job", APP, "run-1", ["site-1"])
    config = read(tmp_path / "job/site/config/config_fed_client.json")
    assert [executor["executor"] for executor in config["executors"]] == [
        {"path": "pack.Executor", "args": {}}
    ]
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
        "from ucadi.engines.flare.guard import close_commands\n"
        "from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors as offered\n"
        "before = {type(p).__name__ for p in offered.request_processors}\n"
        "close_commands('pack.Executor')\n"
        "after = {type(p).__name__ for p in offered.request_processors}\n"
        "print('ShellCommandProcessor' in before, after < before)\n"
        "looks = ('Shell', 'SysInfo', 'Report', 'Configure', 'Restart')\n"
        "print([name for name in after if name.startswith(looks)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True True", "[]"]
