"""The worker's process: it serves network clients and has no access to the device."""
