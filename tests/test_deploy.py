# SPDX-License-Identifier: Apache-2.0
"""The files of deploy/: they can be read, keep to what they promise, and name only commands that exist."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ucadi.cli.main import app
from ucadi.workflows.join import init_site

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
HOW_TO = ROOT / "docs" / "how-to"
PAGES = ("run-with-docker.md", "run-on-kubernetes.md", "run-as-a-service.md", "preflight.md")

MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*/*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = sorted((DEPLOY / "docker").glob("*.yaml"))


# -- commands ---------------------------------------------------------------------------------------------


def check_command(words: list[str]) -> None:
    """Fail unless ucadi has the command and all options that are named."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        assert words, f"no command after {command.name}"
        assert words[0] in command.commands, f"{command.name} has no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{command.name} has no option {word}"


def ucadi_commands(text: str) -> Iterator[list[str]]:
    """Yield what follows the word ucadi in the lines of a script."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for part in re.split(r"\|\||&&|;", line.split(" #")[0]):
            words = part.replace("'", "").replace("`", " ").split()
            for place, (word, follows) in enumerate(pairwise(words), start=1):
                if word in ("ucadi", "/opt/ucadi/bin/ucadi") and follows in GROUPS:
                    yield words[place:]
                    break


GROUPS = {"coordinator", "site", "run", "model", "cohort"}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists(page):
    text = (HOW_TO / page).read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.S))
    found = list(ucadi_commands(blocks))
    through_compose = r"^(?:site|docker compose run --rm coordinator) (.*)$"
    joined = re.sub(r"\\\n\s*", " ", blocks)
    found += [shlex.split(words) for words in re.findall(through_compose, joined, re.M)]
    assert found
    for words in found:
        check_command(words)


def test_the_check_of_commands_finds_what_is_wrong():
    with pytest.raises(AssertionError, match="no command begin"):
        check_command(["site", "begin"])
    with pytest.raises(AssertionError, match="--hurry"):
        check_command(["site", "start", "--hurry"])


# -- Docker -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_gives_no_more_rights_than_needed(path):
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert document.keys() <= {"name", "services", "networks", "volumes"}
    for name, service in document["services"].items():
        assert service["restart"] == "always"
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")
        assert "docker.sock" not in json.dumps(service)
        if name == "database":
            continue
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        check_command(service["command"])
        build = (path.parent / service["build"]["context"]).resolve()
        assert build == ROOT
        assert (build / service["build"]["dockerfile"]).is_file()
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("$") or source in document["volumes"]


def test_a_site_opens_no_port_and_cannot_write_its_cohort():
    service = yaml.safe_load((DEPLOY / "docker/compose-site.yaml").read_text())["services"]["site"]
    assert "ports" not in service
    (cohort,) = [volume for volume in service["volumes"] if "UCADI_COHORT" in volume]
    assert cohort.endswith(":/data:ro")


def test_the_database_is_reached_by_the_coordinator_only_and_no_password_is_written_down():
    document = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    assert document["networks"]["inside"]["internal"] is True
    assert document["services"]["database"]["networks"] == ["inside"]
    assert "ports" not in document["services"]["database"]
    for service in document["services"].values():
        for key, value in service["environment"].items():
            assert "PASSWORD" not in key or value.startswith("${")


def test_the_image_is_made_of_files_that_exist_and_ends_as_a_user():
    lines = re.sub(r"\\\n\s*", " ", (DEPLOY / "docker/Dockerfile").read_text()).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    kinds = {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL"}
    assert {kind for kind, _ in instructions} == kinds | {"ENTRYPOINT", "CMD"}
    allowed = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
    for kind, rest in instructions:
        if kind == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in allowed
    users = [rest for kind, rest in instructions if kind == "USER"]
    assert users == ["10001:10001"]
    assert instructions[-2:] == [["ENTRYPOINT", '["ucadi"]'], ["CMD", '["--help"]']]


# -- Kubernetes -------------------------------------------------------------------------------------------


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """All objects of a folder by kind."""
    found = [d for path in sorted(folder.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    return {document["kind"]: document for document in found}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_manifest_is_one_object_of_a_known_kind(path):
    (document,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    versions = {
        "Kustomization": "kustomize.config.k8s.io/v1beta1",
        "Deployment": "apps/v1",
        "PersistentVolumeClaim": "v1",
        "Service": "v1",
        "NetworkPolicy": "networking.k8s.io/v1",
    }
    assert document["apiVersion"] == versions[document["kind"]]
    if document["kind"] == "Kustomization":
        others = {other.name for other in path.parent.glob("*.yaml")} - {path.name}
        assert set(document["resources"]) == others
    else:
        assert document["metadata"]["name"].startswith("ucadi-")


@pytest.mark.parametrize("role", ["coordinator", "site"])
def test_a_pod_runs_alone_without_root_and_without_a_token(role):
    deployment = documents(DEPLOY / "kubernetes" / role)["Deployment"]
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    for container in (*pod["initContainers"], *pod["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        if "command" in container:
            assert container["command"] == ["sh", "-ec"]
            (script,) = container["args"]
            subprocess.run(["sh", "-n", "-c", script], check=True)
            commands = list(ucadi_commands(script))
            assert commands
            for words in commands:
                check_command(words)
        else:
            check_command(container["args"])


def test_the_cohort_is_mounted_read_only_and_nothing_comes_in():
    objects = documents(DEPLOY / "kubernetes" / "site")
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        for mount in container["volumeMounts"]:
            assert mount["name"] != "cohort" or mount["readOnly"] is True
        assert "ports" not in container
    assert "Service" not in objects
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["ingress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_the_services_ports_are_those_of_the_pod():
    objects = documents(DEPLOY / "kubernetes" / "coordinator")
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    for port in objects["Service"]["spec"]["ports"]:
        assert named[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("role", ["coordinator", "site"])
def test_kustomize_builds_a_folder(role):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes" / role], capture_output=True, text=True, check=True
    )
    kinds = {document["kind"] for document in yaml.safe_load_all(built.stdout)}
    assert "Deployment" in kinds
    assert "image: ucadi\n" not in built.stdout


def test_a_new_sites_settings_have_the_line_that_the_init_container_changes(tmp_path):
    text = init_site(tmp_path / "home").settings_file.read_text(encoding="utf-8")
    pod = documents(DEPLOY / "kubernetes" / "site")["Deployment"]["spec"]["template"]["spec"]
    change = re.search(r"sed -i '([^']+)'", pod["initContainers"][0]["args"][0])[1]
    changed = subprocess.run(["sed", change], input=text, capture_output=True, text=True, check=True)
    assert '\ncohort = "/data"\n' in changed.stdout


# -- systemd ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_again_and_is_closed_in(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "=" in line]
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert settings["Restart"] == "always"
    assert settings["User"] == "ucadi"
    assert settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"
    assert settings["CapabilityBoundingSet"] == ""
    program, *words = shlex.split(settings["ExecStart"])
    assert program == "/opt/ucadi/bin/ucadi"
    check_command(words)
    assert settings["Environment"].startswith(f"UCADI_HOME=/var/lib/{settings['StateDirectory']}/")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_unit(path, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8").replace("/opt/ucadi/bin/ucadi", sys.executable))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
