"""Which VRAMBLK_ variables are read by some program. The server warns of any other: it is a misspelling."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .options import ENVIRONMENT_PREFIX, OPTIONS
from .sources import nearest

#: What is set beside a server for its surroundings. tools/variables.py says what each is for.
OF_OTHERS = frozenset(
    {
        # compose
        "VRAMBLK_BASE", "VRAMBLK_IMAGE", "VRAMBLK_RUNTIMES", "VRAMBLK_RUN_DIR",
        "VRAMBLK_NBD_PORT", "VRAMBLK_METRICS_PORT",
        "VRAMBLK_PROMETHEUS_IMAGE", "VRAMBLK_PROMETHEUS_PORT",
        "VRAMBLK_GRAFANA_IMAGE", "VRAMBLK_GRAFANA_PORT", "VRAMBLK_EXPORTER_PORT",
        "VRAMBLK_MONITORING_TOKEN_PATH", "VRAMBLK_STOP_GRACE_PERIOD", "VRAMBLK_TLS_DIR",
        "VRAMBLK_RENDER_GID", "VRAMBLK_VIDEO_GID", "VRAMBLK_ICD",
        # compose, server
        "VRAMBLK_SOCKET_GID",
        # make up
        "VRAMBLK_UP_TIMEOUT",
        # build
        "VRAMBLK_BASE_DIGEST", "VRAMBLK_VERSION", "VRAMBLK_REVISION", "VRAMBLK_COMPILE", "VRAMBLK_SANITIZE",
        # host script
        "VRAMBLK_NBD_DEVICE", "VRAMBLK_NBD_SOCKET", "VRAMBLK_SWAP_PRIORITY", "VRAMBLK_SWAP_LABEL",
        "VRAMBLK_SWAP_TIMEOUT", "VRAMBLK_SWAP_MIRROR", "VRAMBLK_MIRROR_TIMEOUT", "VRAMBLK_MIN_FREE_KBYTES",
        "VRAMBLK_RESERVE",
        # tests
        "VRAMBLK_TEST_REQUIRE",
    }
)  # fmt: skip
_PATTERNS = (
    re.compile(r"VRAMBLK_(?:TEST_\w+|HOST_ROOT)", re.ASCII),
    # Kubernetes sets these in every pod beside a service called vramblk.
    re.compile(r"VRAMBLK_(?:PORT|SERVICE)(?:_\w+)?", re.ASCII),
)
_OWN = [name for option in OPTIONS for name in (option.environment, option.file_variable)]


def is_known(name: str) -> bool:
    return name in _OWN or name in OF_OTHERS or any(pattern.fullmatch(name) for pattern in _PATTERNS)


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """VRAMBLK_ variables that nothing reads, each with the known name that was probably meant, or nothing."""
    known = [*_OWN, *sorted(OF_OTHERS)]
    unknown = [name for name in environ if name.startswith(ENVIRONMENT_PREFIX) and not is_known(name)]
    return [(name, nearest(name, known, ENVIRONMENT_PREFIX)) for name in sorted(unknown)]
