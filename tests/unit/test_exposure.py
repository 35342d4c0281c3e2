"""Who is warned of an address that asks no client who it is, and in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vramblk.config import exposure
from vramblk.config.exposure import (
    behind_published_ports,
    exposed_listeners,
    exposed_metrics,
    shared_swap_sockets,
)
from vramblk.config.settings import Settings, load_settings
from vramblk.observer import warnings

ACCOUNTS, HOSTS = "every account of this machine", "every host that reaches it"


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "behind_published_ports", lambda: False)


def settings_of(*argv: str) -> Settings:
    return load_settings(argv, {})


@pytest.mark.parametrize(
    ("argv", "who"),
    [
        ((), ACCOUNTS),
        (("--listen-addr", "0.0.0.0:10809"), HOSTS),
        (("--listen-addr", "[::]:10809"), HOSTS),
        (("--listen-addr", "some.host:10809"), HOSTS),
        (("--listen-addr", "localhost:10809"), ACCOUNTS),
        (("--listen-addr", "[::1]:10809"), ACCOUNTS),
        (("--listen-addr", "unix:/tmp/x.sock"), None),
        (("--listen-addr", "0.0.0.0:1", "--tls", "on", "--tls-certificates", "/", "--tls-verify-peer"), HOSTS),
        (("--listen-addr", "0.0.0.0:1", "--tls", "require", "--tls-certificates", "/"), HOSTS),
        (("--listen-addr", "0.0.0.0:1", "--tls", "require", "--tls-certificates", "/", "--tls-verify-peer"), None),
        (("--listen-addr", "0.0.0.0:1", "--tls", "require", "--tls-psk", "/keys"), None),
    ],
)
def test_listeners(argv: tuple[str, ...], who: str | None) -> None:
    """TLS alone keeps nobody out: only clients that prove who they are do."""
    assert [found for _, found in exposed_listeners(settings_of(*argv))] == ([who] if who else [])


def test_metrics() -> None:
    assert exposed_metrics(settings_of()) is None
    assert exposed_metrics(settings_of("--metrics-addr", "127.0.0.1:1")) is None
    assert str(exposed_metrics(settings_of("--metrics-addr", "0.0.0.0:1"))) == "0.0.0.0:1"
    assert exposed_metrics(settings_of("--metrics-addr", "0.0.0.0:1", "--metrics-token", "x")) is None


def test_sockets_of_a_group(tmp_path: Path) -> None:
    """Whoever may open a swap server's socket can attach before the kernel does."""
    path = tmp_path / "nbd.sock"
    swap = settings_of("--mode", "swap", "--listen-addr", f"unix:{path}", "--listen-addr", "unix:/no/such")
    assert list(shared_swap_sockets(swap)) == []
    path.touch(0o660)
    if os.geteuid() == 0:
        assert list(shared_swap_sockets(swap)) == [], "root's"
        os.chown(path, -1, 1234)
    gid = path.stat().st_gid
    assert list(shared_swap_sockets(swap)) == [(str(path), gid)]
    [found] = [each for each in warnings._exposure({"socket_groups": [{"path": str(path), "group": gid}]}, swap) if each.code == "swap_socket_group"]
    assert f"group {gid}" in found.text
    assert list(shared_swap_sockets(settings_of("--listen-addr", f"unix:{path}"))) == []
    path.chmod(0o600)
    assert list(shared_swap_sockets(swap)) == []


def test_in_a_container_the_published_port_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "behind_published_ports", lambda: True)
    settings = settings_of("--listen-addr", "0.0.0.0:10809", "--metrics-addr", "0.0.0.0:10810")
    [(_, who)] = exposed_listeners(settings)
    assert "published port" in who and exposed_metrics(settings) is None


def machine(root: Path, mark: str, **interfaces: tuple[int, int]) -> Path:
    if mark:
        (root / mark).parent.mkdir(parents=True, exist_ok=True)
        (root / mark).touch()
    for name, (index, link) in {"lo": (1, 1), **interfaces}.items():
        folder = root / "sys/class/net" / name
        folder.mkdir(parents=True)
        (folder / "ifindex").write_text(f"{index}\n")
        (folder / "iflink").write_text(f"{link}\n")
    return root


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_a_container_with_a_network_of_its_own(tmp_path: Path, mark: str) -> None:
    root = machine(tmp_path, mark, eth0=(12, 13))
    assert behind_published_ports(root, {})
    assert not behind_published_ports(root, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}), "open to the cluster"


def test_a_container_without_a_network(tmp_path: Path) -> None:
    assert behind_published_ports(machine(tmp_path, ".dockerenv"), {})


def test_the_hosts_network_in_a_container(tmp_path: Path) -> None:
    assert not behind_published_ports(machine(tmp_path, ".dockerenv", eth0=(2, 2), veth1=(5, 4)), {})


def test_a_host_with_a_bridge_only(tmp_path: Path) -> None:
    assert not behind_published_ports(machine(tmp_path, "", eth0=(12, 13)), {})


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["--allow-cpu"], {}, "leave out --allow-cpu"),
        ([], {"VRAMBLK_ALLOW_CPU": "on"}, "switch allow_cpu off (environment VRAMBLK_ALLOW_CPU)"),
    ],
)
def test_the_remedy_names_what_was_typed(argv: list[str], environ: dict[str, str], words: str) -> None:
    assert words in warnings._without_cpu(load_settings(argv, environ))


def test_the_remedy_in_a_container_is_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the compose file has said it, and nobody typed it."""
    monkeypatch.setattr(warnings, "behind_published_ports", lambda: True)
    text = warnings._without_cpu(load_settings([], {"VRAMBLK_ALLOW_CPU": "on"}))
    assert "give the container a GPU" in text and "allow" not in text
