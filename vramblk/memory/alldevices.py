"""Which devices ``--device all`` means."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.settings import DevicePlace, Settings
from ..errors import PreconditionError
from .devices import DeviceInfo, choose


def places(settings: Settings, devices: Sequence[DeviceInfo]) -> dict[int, list[DevicePlace]]:
    """The devices of each export that is to be on all, by the export's number, in their own order.

    All GPUs of the export's platform, or of any; with --allow-cpu all CPUs if there is no GPU. A GPU that two
    platforms offer counts once, for the first of them.

    Raises:
        PreconditionError: there is none, or one of them cannot be used.
    """
    found = {}
    for number in settings.on_all_devices:
        platform = settings.exports[number].platform
        first = choose(devices, platform, None, allow_cpu=settings.allow_cpu)
        chosen: list[DeviceInfo] = []
        for each in devices:
            if each.type != first.type or (platform is not None and each.platform_index != platform):
                continue
            if each.pci_address is None or each.pci_address not in {other.pci_address for other in chosen}:
                chosen.append(each)
        for each in chosen:
            if each.problem is not None:
                raise PreconditionError(
                    f"{each.label} cannot be used: {each.problem}; name the other devices in a YAML file"
                )
        found[number] = [(each.platform_index, each.device_index, each.type) for each in chosen]
    return found
