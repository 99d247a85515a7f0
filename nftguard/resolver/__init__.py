"""Host names to addresses: a process of its own asks, without any privilege, and the daemon reads its answers."""
