"""Tests on virtual machines: Debian with its own kernel, for what a container cannot show (see machine.py)."""
