# sudo make run     install what is missing, then run the guard in the foreground on this machine
# sudo make test    install what is missing, then run every check and test
# sudo make bench   install what is missing, then measure (a few minutes)
# sudo make fuzz    a million mutated messages from the kernel
# sudo make test-long what takes minutes: an alert's whole minute, a journald that hangs, ten thousand attempts
# sudo make test-vm the slower tests on Debian's own kernels, in virtual machines
PACKAGES = nftables python3-nftables python3-systemd python3-venv
TEST_PACKAGES = iproute2 iptables logrotate mmdebstrap procps rsyslog systemd-container
VM_PACKAGES = e2fsprogs qemu-system-x86
# The system's own python: only it sees the distribution's nftables and systemd modules.
PYTHON = /usr/bin/python3
BIN = .venv/bin

.PHONY: setup run test test-long test-vm fuzz check bench clean

setup: .venv/.run

run: setup
	$(BIN)/nftguard --config conf/nftguard.toml run

# Booted machines wait more than they work, so each Debian has a process of its own; what they say comes at the end. The
# other tests come before them: some look at what a daemon does when nothing happens. A shell has what it puts into the
# background ignore SIGINT, and so would all that they start.
test: .venv/.test check
	$(BIN)/python -m pytest --ignore=tests/vm --ignore=tests/boot
	@booted="env --default-signal=INT $(BIN)/python -m pytest tests/boot"; \
	$$booted -k debian12 >.boot12.log 2>&1 & old=$$!; \
	failed=0; $$booted -k 'not debian12' || failed=1; \
	wait $$old || failed=1; cat .boot12.log; rm -f .boot12.log; exit $$failed

test-long: .venv/.test
	$(BIN)/python -m pytest -m long --ignore=tests/vm

test-vm: .venv/.test
	@$(call install,$(VM_PACKAGES))
	$(BIN)/python -m pytest tests/vm

check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: .venv/.test
	$(BIN)/python -m tests.fuzz

bench: .venv/.test
	$(BIN)/python -m bench

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Packages are asked for only where one is missing, so that nothing needs a network once set up.
define install
	dpkg-query --show --showformat='$${db:Status-Status}\n' $(1) 2>&1 | grep -qv '^installed$$' || exit 0; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(1)
endef

.venv/.run: pyproject.toml Makefile
	@$(call install,$(PACKAGES))
	$(PYTHON) -m venv --system-site-packages .venv
	$(BIN)/pip install -q --disable-pip-version-check --editable .
	$(BIN)/python -m compileall -q nftguard
	touch $@

.venv/.test: .venv/.run
	@$(call install,$(TEST_PACKAGES))
	$(BIN)/pip install -q --disable-pip-version-check --editable '.[test]'
	touch $@
