"""Tests in groups: unit, wire, page, container, vm, gpu. ``run.py`` runs what a machine can."""
