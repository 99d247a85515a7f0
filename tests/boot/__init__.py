"""Tests on real machines: Debian with systemd, booted in a container (see machine.py)."""
