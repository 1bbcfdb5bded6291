"""The manifests of deploy/kubernetes are valid for Kubernetes, and match the program."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from narmount.csi.attributes import parse_attributes
from narserve.commands.csi import DRIVER_NAME, KUBELET_DIR, STATE_DIR, csi
from narserve.commands.mount import mount
from tests import ROOT, tools

KUBERNETES = ROOT / "deploy/kubernetes"
MANIFESTS = ("csidriver.yaml", "daemonset.yaml", "example-job.yaml", "rbac.yaml")
VERSIONS = ("1.25", "1.30", "1.37")  # the first with stable inline volumes, and the newest known version

Object = dict[str, Any]


def objects(name: str) -> list[Object]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def daemonset() -> Object:
    (found,) = objects("daemonset.yaml")
    return found


def containers() -> dict[str, Object]:
    return {each["name"]: each for each in daemonset()["spec"]["template"]["spec"]["containers"]}


def command_line(container: Object) -> list[str]:
    """Return the command of a container. The entry point of the image is nar-serve."""
    found: list[str] = container.get("command", ["nar-serve"]) + container["args"]
    return found


def probes(container: Object) -> dict[str, list[str]]:
    return {name: container[name]["exec"]["command"] for name in container if name.endswith("Probe")}


def commands(container: Object) -> list[list[str]]:
    """Return all command lines of nar-serve in a container: its command and its probes."""
    texts = [command_line(container), *probes(container).values()]
    found = []
    for words in texts:
        line = words[2] if words[:2] == ["sh", "-c"] else " ".join(words)
        match = re.search(r"nar-serve (?!/)(.*?)(?:;|$)", line[line.index("nar-serve ") :].replace("exec ", ""))
        found.append(match[1].split() if match else [])
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(version: str) -> None:
    files = [KUBERNETES / name for name in MANIFESTS]
    command: list[str | Path] = [tools.kubernetes_validate(), "--strict", "--kubernetes-version", version, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("passed") == 5, done.stdout + done.stderr


def test_the_validator_finds_a_misspelled_field(tmp_path: Path) -> None:
    wrong = (KUBERNETES / "daemonset.yaml").read_text().replace("mountPropagation:", "mountPropagations:")
    (tmp_path / "wrong.yaml").write_text(wrong)
    command: list[str | Path] = [
        tools.kubernetes_validate(),
        "--strict",
        "--kubernetes-version",
        VERSIONS[-1],
        tmp_path / "wrong.yaml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "mountPropagations" in done.stdout + done.stderr


def test_kustomize_applies_all_manifests_but_the_example() -> None:
    (kustomization,) = objects("kustomization.yaml")
    assert {*kustomization["resources"]} == {*MANIFESTS} - {"example-job.yaml"}
    assert {path.name for path in KUBERNETES.iterdir()} == {*MANIFESTS, "kustomization.yaml"}
    assert [image["name"] for image in kustomization["images"]] == ["nar-serve"]
    assert {container["image"] for container in containers().values()} == {"nar-serve"}


def test_the_csidriver_has_the_name_of_the_program() -> None:
    (driver,) = objects("csidriver.yaml")
    assert driver["metadata"]["name"] == DRIVER_NAME
    assert driver["spec"] == {
        "volumeLifecycleModes": ["Ephemeral"],
        "attachRequired": False,
        "podInfoOnMount": True,
        "fsGroupPolicy": "None",
        "requiresRepublish": False,
        "storageCapacity": False,
    }


def test_the_example_uses_valid_volume_attributes() -> None:
    (job,) = objects("example-job.yaml")
    pod = job["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    assert volume["csi"]["driver"] == DRIVER_NAME
    request = parse_attributes(volume["csi"]["volumeAttributes"], read_only=False, mount_group="", caches=["main"])
    (wanted,) = request.prefetch
    assert pod["containers"][0]["command"][0].startswith(f"/nix/store/{wanted}/")
    assert pod["containers"][0]["volumeMounts"] == [{"name": volume["name"], "mountPath": "/nix/store"}]


@pytest.mark.parametrize(("name", "command", "count"), [("mount", mount, 3), ("csi", csi, 3)])
def test_the_command_lines_are_valid_for_the_program(name: str, command: click.Command, count: int) -> None:
    lines = commands(containers()[name])
    assert len(lines) == count
    for words in lines:
        assert words[0] == name
        command.make_context(name, list(words[1:]))


def test_both_containers_use_the_same_mount() -> None:
    mounted = commands(containers()["mount"])[0][-1]
    (csi_line, *_) = commands(containers()["csi"])
    assert ("--cache", f"main={mounted}") in [*pairwise(csi_line)]
    assert f"mkdir -p {mounted} " in containers()["mount"]["args"][0]


def test_mounts_propagate_to_the_node() -> None:
    for container in containers().values():
        assert container["securityContext"]["privileged"] is True
        mounts = {each["name"]: each for each in container["volumeMounts"]}
        for name in {"data", "kubelet"} & mounts.keys():
            assert mounts[name]["mountPropagation"] == "Bidirectional"
    volumes = {each["name"]: each for each in daemonset()["spec"]["template"]["spec"]["volumes"]}
    by_name = {each["name"]: each["mountPath"] for each in containers()["csi"]["volumeMounts"]}
    for name, directory in (("data", STATE_DIR.parent), ("kubelet", KUBELET_DIR)):
        # The paths are the same in the container, since the plugin and kubelet exchange paths of the node.
        assert by_name[name] == volumes[name]["hostPath"]["path"] == str(directory)


def test_the_container_of_the_mount_is_never_restarted_or_limited() -> None:
    """A restart would end the mounts of running pods, and so would the kernel at a memory limit."""
    assert daemonset()["spec"]["updateStrategy"]["type"] == "OnDelete"
    container = containers()["mount"]
    assert "livenessProbe" not in container
    assert "limits" not in container["resources"]


def test_the_plugin_has_no_access_to_the_kubernetes_api() -> None:
    kinds = {each["kind"]: each for each in objects("rbac.yaml")}
    assert {*kinds} == {"Namespace", "ServiceAccount"}
    assert kinds["ServiceAccount"]["automountServiceAccountToken"] is False
    assert daemonset()["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
