# sudo make run     install what is missing, then run the guard in the foreground on this machine
# sudo make test    install what is missing, then run every check and test
# sudo make install install it below /usr/local, where no package fits; sudo make uninstall
# sudo make deb     build the Debian packages into dist/
# sudo make dist    build the wheel and the sources into dist/; make rpm: the RPM package, on the system that it is for
# sudo make bench   install what is missing, then measure (a few minutes)
# sudo make fuzz    a million mutated messages from the kernel
# sudo make test-long what takes minutes: an alert's whole minute, a journald that hangs, ten thousand attempts
# sudo make test-vm the slower tests on Debian's own kernels, in virtual machines
PACKAGES = nftables python3-nftables python3-systemd python3-venv
TEST_PACKAGES = fish go-md2man groff-base iproute2 iptables logrotate man-db mandoc mmdebstrap procps rpm rsyslog systemd-container zsh
VM_PACKAGES = e2fsprogs qemu-system-x86
DEB_PACKAGES = mmdebstrap
# The system's own python: only it sees the distribution's nftables and systemd modules.
PYTHON = /usr/bin/python3
BIN = .venv/bin

.PHONY: setup run install installed install-data uninstall man deb test test-long test-vm fuzz check bench clean dist rpm

setup: .venv/.run

run: setup
	$(BIN)/nftguard --config conf/nftguard.toml run

# Booted machines wait more than they work, so each Debian has a process of its own; what they say comes at the end. Their
# images are built beside the other tests, which come before them: some look at what a daemon does when nothing happens.
# A shell has what it puts into the background ignore SIGINT, and so would all that they start.
test: .venv/.test
	@$(BIN)/python -m tests.boot.image & images=$$!; \
	$(MAKE) check && $(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/vm --ignore=tests/boot; \
	failed=$$?; wait $$images; exit $$failed
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

# The Debian packages, into dist/: needs root, mmdebstrap, a Debian mirror and PyPI. On Debian 13 dpkg-buildpackage does, too,
# and on Debian 12 or Ubuntu 24.04 debian/backport and then that.
deb: .venv/.run
	@$(call install,$(DEB_PACKAGES))
	$(BIN)/python -m builder.deb dist

# For hosts that no package is for; needs the system's python with venv, its modules nftables and systemd, and go-md2man.
# The program lives in a virtual environment, for which pip fetches what the system has not. systemd, journald and the
# shells look below /usr/local and /usr only, so that prefix is one of these.
prefix = /usr/local
venv = $(prefix)/lib/nftguard/venv
package = $(venv)/lib/$(shell $(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')/site-packages/nftguard
zshdir = $(prefix)/share/zsh/site-functions
LIB = $(DESTDIR)$(prefix)/lib
SHARE = $(DESTDIR)$(prefix)/share
DATA = install -D -m 644
UNITS = $(notdir $(wildcard systemd/*.service systemd/*.path))

install: install-data
	$(PYTHON) -m venv --system-site-packages $(DESTDIR)$(venv)
	$(DESTDIR)$(venv)/bin/python3 -m pip install --quiet --disable-pip-version-check --upgrade '.[metrics]'
	sed -i '1s#.*#\#!$(venv)/bin/python3 -s#' $(DESTDIR)$(venv)/bin/nftguard
	mkdir -p $(DESTDIR)$(prefix)/bin
	ln -sfn $(venv)/bin/nftguard $(DESTDIR)$(prefix)/bin/nftguard
	@test -n '$(DESTDIR)' || $(MAKE) --no-print-directory installed

installed:
	systemd-sysusers $(prefix)/lib/sysusers.d/nftguard.conf
	journalctl --update-catalog
	test ! -d /run/systemd/system || systemctl daemon-reload
	test ! -d /run/systemd/system || systemctl try-restart nftguard.service nftguard-metrics.service
	@sed -n "/^nftguard is/,/^END/{/^END/!p}" debian/nftguard.postinst

# Keeps the configuration, the counters and the user, unless told `purge=yes`.
uninstall:
ifndef DESTDIR
	for unit in $(UNITS); do \
		test ! -e $(LIB)/systemd/system/$$unit || systemctl disable --quiet --now $$unit || exit 1; done
	test ! -d /run/systemd/system || for family in inet bridge; do \
		nft list table $$family nftguard >/dev/null 2>&1 && nft delete table $$family nftguard; done || true
	rm -rf /run/nftguard
endif
	rm -f $(addprefix $(LIB)/systemd/system/,$(UNITS))
	rm -rf $(LIB)/nftguard $(SHARE)/doc/nftguard
	rm -f $(DESTDIR)$(prefix)/bin/nftguard $(LIB)/sysusers.d/nftguard.conf $(LIB)/modules-load.d/nftguard.conf \
		$(LIB)/systemd/catalog/nftguard.catalog $(SHARE)/man/man8/nftguard.8 $(SHARE)/man/man5/nftguard.toml.5 \
		$(SHARE)/bash-completion/completions/nftguard $(DESTDIR)$(zshdir)/_nftguard \
		$(SHARE)/fish/vendor_completions.d/nftguard.fish
ifdef purge
	rm -rf $(DESTDIR)/etc/nftguard.toml $(DESTDIR)/etc/nftguard.d $(DESTDIR)/var/lib/nftguard
	test -n '$(DESTDIR)' || ! getent passwd nftguard | grep -q ':nftguard service:' || userdel nftguard
endif
ifndef DESTDIR
	test ! -d /run/systemd/system || systemctl daemon-reload
	systemctl reset-failed 'nftguard*' 2>/dev/null || true
	journalctl --update-catalog
endif

# All but the Python package: units, the user's name, the journal's catalog, manual pages, completion, documents. The Debian
# package and the RPM are made with it, with prefix=/usr and the place where theirs has the Python package.
install-data: man
	for unit in systemd/*.service systemd/*.path; do \
		$(DATA) $$unit $(LIB)/systemd/system/$${unit#systemd/} || exit 1; done
	$(DATA) systemd/nftguard.sysusers $(LIB)/sysusers.d/nftguard.conf
	$(DATA) systemd/nftguard.modules $(LIB)/modules-load.d/nftguard.conf
	$(DATA) systemd/nftguard.catalog $(LIB)/systemd/catalog/nftguard.catalog
	sed -i 's#/usr/bin/nftguard#$(prefix)/bin/nftguard#; s#/usr/lib/nftguard/#$(prefix)/lib/nftguard/#' \
		$(LIB)/systemd/system/nftguard*.service
	mkdir -p $(LIB)/nftguard
	ln -sfn $(package)/boot.sh $(LIB)/nftguard/boot
	test -e $(DESTDIR)/etc/nftguard.toml || $(DATA) conf/nftguard.toml $(DESTDIR)/etc/nftguard.toml
	$(DATA) build/man/nftguard.8 $(SHARE)/man/man8/nftguard.8
	$(DATA) build/man/nftguard.toml.5 $(SHARE)/man/man5/nftguard.toml.5
	$(DATA) completions/nftguard.bash $(SHARE)/bash-completion/completions/nftguard
	$(DATA) completions/_nftguard $(DESTDIR)$(zshdir)/_nftguard
	$(DATA) completions/nftguard.fish $(SHARE)/fish/vendor_completions.d/nftguard.fish
	for file in README.md CHANGELOG.md docs/*.md; do \
		$(DATA) $$file $(SHARE)/doc/nftguard/$$file || exit 1; done
	for file in conf/rsyslog-nftguard.conf conf/logrotate-nftguard systemd/nftguard-exact.conf contrib/prometheus/* \
		contrib/grafana/*; do $(DATA) $$file $(SHARE)/doc/nftguard/examples/$${file##*/} || exit 1; done

man: build/man/nftguard.8 build/man/nftguard.toml.5

# What is to be typed is neither hyphenated nor spaced out (.TH turns that on, so it is turned off behind it), and has the
# minus sign of ASCII, at which no line ends.
build/man/%: docs/man/%.md
	@mkdir -p build/man
	@command -v go-md2man >/dev/null || { echo 'go-md2man is missing: install it first (Debian: go-md2man)' >&2; exit 1; }
	go-md2man -in $< -out $@
	sed -i -e '1{/^\.nh$$/d}' -e '/^\.TH/a .nh\n.ad l' -e '/^\.[^S]/!s/-/\\-/g' $@

# A wheel and the sources, the same bytes each time. Elsewhere than on Debian with the distribution's own hatchling.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' nftguard/__init__.py)
TOOLS = PATH="$(CURDIR)/$(BIN):$$PATH"

dist: $(if $(wildcard /etc/debian_version),.venv/.test)
	$(TOOLS) hatchling build -d dist

# For the distribution and the Python that this runs on: contrib/rpm/README.md. RPMFLAGS is for rpmbuild.
rpm: dist
	rm -rf build/rpm
	mkdir -p build/rpm/SPECS build/rpm/SOURCES
	sed 's/@VERSION@/$(VERSION)/' contrib/rpm/nftguard.spec >build/rpm/SPECS/nftguard.spec
	cp dist/nftguard-$(VERSION).tar.gz build/rpm/SOURCES
	$(TOOLS) pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d build/rpm/SOURCES \
		"structlog==$$(sed -n 's/^%global structlog //p' contrib/rpm/nftguard.spec)"
	rpmbuild -ba --define "_topdir $(CURDIR)/build/rpm" $(RPMFLAGS) build/rpm/SPECS/nftguard.spec
	cp build/rpm/RPMS/noarch/*.rpm build/rpm/SRPMS/*.rpm dist

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
