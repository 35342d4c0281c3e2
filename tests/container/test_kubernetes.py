"""The Kubernetes manifests against the API's schemas. Needs kubernetes-validate (PyPI) and kustomize."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .docker import REPOSITORY

kubernetes_validate = pytest.importorskip("kubernetes_validate")
pytestmark = pytest.mark.container

KUBERNETES = REPOSITORY / "deploy/kubernetes"
DIRECTORIES = ("base", "overlays/nvidia", "overlays/amd")
VERSIONS = ("1.28", "1.30", "1.33", "1.36")


def build(directory: Path) -> list[dict[str, Any]]:
    """What `kustomize build` makes of the few features that these manifests use."""
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert set(kustomization) <= {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
    objects = []
    for name in kustomization["resources"]:
        path = directory / name
        objects += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for one in objects:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = kustomization["namespace"]
    for patch in kustomization.get("patches", []):
        target = patch["target"]
        matching = [
            one
            for one in objects
            if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        assert matching, f"the patch of {target} has no target"
        for one in matching:
            for operation in yaml.safe_load(patch["patch"]):
                add(one, operation)
    for image in kustomization.get("images", []):
        for container in (c for o in objects if o["kind"] == "DaemonSet" for c in o["spec"]["template"]["spec"]["containers"]):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def add(document: Any, operation: dict[str, Any]) -> None:
    """RFC 6902 "add" of an object member, or to the end of a list."""
    assert operation["op"] == "add"
    *parents, last = operation["path"].strip("/").split("/")
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    if last == "-":
        document.append(copy.deepcopy(operation["value"]))
    else:
        document[last] = copy.deepcopy(operation["value"])


def daemon_set(name: str) -> dict[str, Any]:
    (one,) = [one for one in build(KUBERNETES / name) if one["kind"] == "DaemonSet"]
    return one


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_fits_the_schemas(directory, version):
    for one in build(KUBERNETES / directory):
        kubernetes_validate.validate(one, version, strict=True)


def test_a_wrong_field_would_be_noticed():
    one = daemon_set("base")
    one["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, VERSIONS[0], strict=True)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_kustomize_builds_the_same(directory):
    path = f"{os.environ['PATH']}:{REPOSITORY / 'build/bin'}"
    program = shutil.which("kustomize", path=path) or pytest.skip("requires kustomize")
    done = subprocess.run(
        [program, "build", KUBERNETES / directory], capture_output=True, text=True, timeout=30, check=True
    )
    built = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert built == {one["kind"]: one for one in build(KUBERNETES / directory)}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_security_context_is_that_of_the_compose_file(directory):
    pod = daemon_set(directory)["spec"]["template"]["spec"]
    context = pod["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK", "KILL", "SETGID", "SETUID"]}
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert "privileged" not in context
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_probes_and_socket(directory):
    pod = daemon_set(directory)["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["volumeMounts"][0] == {"name": "run", "mountPath": "/run/vramblk"}
    assert pod["volumes"][0]["hostPath"]["path"] == "/run/vramblk"


def test_nothing_is_served_to_the_cluster_without_being_asked():
    (config,) = [one for one in build(KUBERNETES / "base") if one["kind"] == "ConfigMap"]
    assert config["data"]["VRAMBLK_LISTEN_ADDR"] == "unix:/run/vramblk/nbd.sock"


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_metrics_ask_for_a_token_that_is_a_secret(directory):
    """A pod address is open to the whole cluster."""
    template = daemon_set(directory)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    environment = {each["name"]: each for each in container["env"]}
    # As a file: one that is empty is an error, while an empty variable would mean no token.
    assert "VRAMBLK_METRICS_TOKEN" not in environment
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "token")
    assert environment["VRAMBLK_METRICS_TOKEN_FILE"]["value"] == f"{mount['mountPath']}/token"
    (volume,) = (each for each in template["spec"]["volumes"] if each["name"] == "token")
    assert volume["secret"]["secretName"] == "vramblk-metrics"
    assert "annotations" not in template["metadata"], "who scrapes by annotation has no token"
    assert ("OCL_ICD_VENDORS" in environment) is (directory != "base")
    assert "create secret generic vramblk-metrics" in (REPOSITORY / "docs/guides/kubernetes.md").read_text()


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_the_image_is_named_by_its_registry_and_the_docs_say_how_it_gets_there(vendor):
    """A bare name would be looked for on Docker Hub, where it is not ours."""
    image = daemon_set(f"overlays/{vendor}")["spec"]["template"]["spec"]["containers"][0]["image"]
    registry, _, name = image.rpartition("/")
    assert "." in registry
    assert name.partition(":")[0] == "vramblk"
    text = (REPOSITORY / "docs/guides/kubernetes.md").read_text()
    assert f"docker push {registry}/vramblk:1" in text
    (command,) = re.findall(r"sed -i '([^']+)' \\\n +(deploy/kubernetes/\S+)", text)
    done = subprocess.run(
        ["sed", command[0], REPOSITORY / command[1]], capture_output=True, text=True, timeout=10, check=True
    )
    assert yaml.safe_load(done.stdout)["images"] == [{"name": "vramblk", "newName": f"{registry}/vramblk", "newTag": "1"}]


def test_settings_are_options_of_the_server():
    options = pytest.importorskip("vramblk.config.options")
    (config,) = [one for one in build(KUBERNETES / "base") if one["kind"] == "ConfigMap"]
    known = {option.environment: option for option in options.OPTIONS}
    for name, value in config["data"].items():
        known[name].parse(value)


@pytest.mark.parametrize(("vendor", "resource"), [("nvidia", "nvidia.com/gpu"), ("amd", "amd.com/gpu")])
def test_an_overlay_asks_for_one_gpu_on_gpu_nodes(vendor, resource):
    spec = daemon_set(f"overlays/{vendor}")["spec"]
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {resource: "1"}
    assert pod["nodeSelector"]
    assert pod["tolerations"][0]["key"] == resource
    assert spec["updateStrategy"]["type"] == "OnDelete", "an upgrade must not cut clients off"
