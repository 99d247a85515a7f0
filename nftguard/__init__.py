"""nftguard keeps a Linux host from being used to send spam: it blocks ports with nftables and keeps them blocked."""

__version__ = "0.1.0"
