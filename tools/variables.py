"""The VRAMBLK_ variables that other programs than the server read, for the documentation.

The server has only their names, so that it does not warn of them: ``vramblk.config.variables``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ForeignVariable:
    """A variable that is not the server's; ``user`` is who reads it."""

    name: str
    user: str
    help: str
    default: str = ""


FOREIGN_VARIABLES: tuple[ForeignVariable, ...] = (
    ForeignVariable(
        "VRAMBLK_BASE",
        "compose",
        "Base image of the build, Debian trixie. With @sha256:DIGEST exactly this image.",
        "debian:trixie-slim",
    ),
    ForeignVariable("VRAMBLK_IMAGE", "compose", "Image to run.", "vramblk:latest"),
    ForeignVariable(
        "VRAMBLK_RUNTIMES",
        "compose",
        "OpenCL runtimes in the image: nvidia, amd, intel, cpu. If unset, the compose file chooses.",
    ),
    ForeignVariable("VRAMBLK_RUN_DIR", "compose", "Directory of the host for the sockets.", "/run/vramblk"),
    ForeignVariable("VRAMBLK_NBD_PORT", "compose", "Port of the host for NBD, on 127.0.0.1.", "10809"),
    ForeignVariable(
        "VRAMBLK_METRICS_PORT", "compose", "Port of the host for metrics, on 127.0.0.1.", "10810"
    ),
    ForeignVariable(
        "VRAMBLK_PROMETHEUS_IMAGE", "compose", "Image for `make monitoring`.", "prom/prometheus:v3.5.0"
    ),
    ForeignVariable(
        "VRAMBLK_PROMETHEUS_PORT", "compose", "Port of the host for Prometheus, on 127.0.0.1.", "9090"
    ),
    ForeignVariable(
        "VRAMBLK_GRAFANA_IMAGE", "compose", "Image for `make monitoring`.", "grafana/grafana:12.1.0"
    ),
    ForeignVariable("VRAMBLK_GRAFANA_PORT", "compose", "Port of the host for Grafana, on 127.0.0.1.", "3000"),
    ForeignVariable(
        "VRAMBLK_EXPORTER_PORT", "compose", "Port of the host for metrics of `make monitoring`.", "10811"
    ),
    ForeignVariable(
        "VRAMBLK_MONITORING_TOKEN_PATH",
        "compose",
        "File of the host with the token for `make monitoring`; user 65534 must be able to read it.",
    ),
    ForeignVariable(
        "VRAMBLK_SOCKET_GID", "compose, server", "Group, as a number, for the Unix sockets.", "0"
    ),
    ForeignVariable("VRAMBLK_STOP_GRACE_PERIOD", "compose", "How long Docker waits for a stop.", "2m"),
    ForeignVariable("VRAMBLK_TLS_DIR", "compose", "Directory of the host with the TLS files.", "./tls"),
    ForeignVariable("VRAMBLK_RENDER_GID", "compose", "Group of /dev/dri/renderD*, as a number."),
    ForeignVariable("VRAMBLK_VIDEO_GID", "compose", "Group of /dev/dri/card*, as a number."),
    ForeignVariable("VRAMBLK_ICD", "compose", "OpenCL driver for AMD: amdocl64 or rusticl.", "amdocl64"),
    ForeignVariable("VRAMBLK_UP_TIMEOUT", "make up", "Seconds to wait until the server is healthy.", "120"),
    ForeignVariable("VRAMBLK_BASE_DIGEST", "build", "Digest of the base written into the image."),
    ForeignVariable("VRAMBLK_VERSION", "build", "Version written into the image."),
    ForeignVariable("VRAMBLK_REVISION", "build", "Revision written into the image."),
    ForeignVariable(
        "VRAMBLK_COMPILE", "build", "no: do not compile hot modules. require: fail if that is not possible."
    ),
    ForeignVariable("VRAMBLK_SANITIZE", "build", "address: hot modules for AddressSanitizer, for tests."),
    ForeignVariable(
        "VRAMBLK_NBD_DEVICE", "host script", "NBD device to attach. If unset, the first free one."
    ),
    ForeignVariable(
        "VRAMBLK_NBD_SOCKET", "host script", "Unix socket of the server.", "/run/vramblk/nbd.sock"
    ),
    ForeignVariable("VRAMBLK_SWAP_PRIORITY", "host script", "Priority for swapon."),
    ForeignVariable("VRAMBLK_SWAP_LABEL", "host script", "Label for mkswap.", "vramblk"),
    ForeignVariable("VRAMBLK_SWAP_TIMEOUT", "host script", "How long to wait for the server and the device."),
    ForeignVariable("VRAMBLK_SWAP_MIRROR", "host script", "Block device for a copy of every page in swap."),
    ForeignVariable(
        "VRAMBLK_MIRROR_TIMEOUT", "host script", "How long a mirror waits for the server, in seconds."
    ),
    ForeignVariable("VRAMBLK_RESERVE", "host script", "Free memory of each GPU for `vramblk-swap auto`."),
    ForeignVariable("VRAMBLK_MIN_FREE_KBYTES", "host script", "vm.min_free_kbytes while swap is on."),
    ForeignVariable("VRAMBLK_TEST_REQUIRE", "tests", "all: a skipped test is a failure."),
)
