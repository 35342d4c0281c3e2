"""What all groups share: the group as a marker, and the property that the runner reads from a result."""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(_TESTS).parts[0])
        if item.get_closest_marker("needs_sys_resource"):
            item.user_properties.append(("needs_sys_resource", "true"))
