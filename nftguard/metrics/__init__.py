"""What the daemon writes to status.json, for Prometheus: read, turned into series, served."""
