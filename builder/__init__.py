"""How nftguard's Debian packages are built, each in a clean system of its release: `make deb`."""
