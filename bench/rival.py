"""Ways to block the origin story's eleven ports on output, each set up as its own documentation has it, and booted."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.namespace import Namespace
from bench.probe import answering
from tests.boot.base import CHECKOUT
from tests.boot.machine import Machine
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType
    from typing import Self

    from bench.probe import Target
    from tests.boot.image import Image

PACKAGES = ("firewalld", "ufw")
PORTS = (21, 22, 23, 25, 109, 110, 143, 465, 587, 993, 995)
PEERS = ("192.0.2.1", "2001:db8::1")
MAIL: tuple[Target, ...] = tuple((peer, 25) for peer in PEERS)

_LISTED = ",".join(map(str, PORTS))
_NFTABLES = f"""\
#!/usr/sbin/nft -f
flush ruleset

table inet filter {{
    chain output {{
        type filter hook output priority filter; policy accept;
        tcp dport {{ {_LISTED} }} log prefix "mail out: " counter drop
    }}
}}
"""
# firewalld.policies(5): what goes out of this host anywhere. The new policy's target of its own leaves the rest alone.
POLICY = (
    '<?xml version="1.0" encoding="utf-8"?>\n<policy target="CONTINUE">\n'
    '<ingress-zone name="HOST"/><egress-zone name="ANY"/>\n'
    + "".join(f'<rule><port port="{port}" protocol="tcp"/><drop/></rule>\n' for port in PORTS)
    + "</policy>\n"
)
_IPTABLES = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/iptables-restore /etc/iptables.up.rules
ExecStop=/usr/sbin/iptables -F OUTPUT
"""
# Debian enables these two on installation. ufw's own unit does nothing before `ufw enable`, which starts it, too.
_QUIET = "systemctl --quiet disable --now firewalld ufw"
UFW = f"ufw deny out proto tcp to any port {_LISTED} && ufw --force enable && systemctl --quiet disable ufw"
# A guest behind the host, as a container or a VPN's client is one.
_GUEST = """
ip netns add guest
ip link add guest0 type veth peer name eth0 netns guest
ip link set guest0 up
ip address add 198.51.100.1/24 dev guest0
ip address add 2001:db8:1::1/64 dev guest0 nodad
ip -n guest link set eth0 up
ip -n guest address add 198.51.100.2/24 dev eth0
ip -n guest address add 2001:db8:1::2/64 dev eth0 nodad
ip -n guest route add default via 198.51.100.1
ip -n guest route add default via 2001:db8:1::1
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""
_ROUTES = "route replace 198.51.100.0/24 via 192.0.2.2\nroute replace 2001:db8:1::/64 via 2001:db8::2\n"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to block."""

    units: tuple[str, ...] = ()
    """What starts and stops it; the first is the daemon, where there is one."""
    setup: str = ":"
    files: tuple[tuple[str, str], ...] = ()
    daemon: bool = False


BASELINE = "nftables.service"
WAYS = {
    "none": Way(),
    BASELINE: Way(("nftables.service",), files=(("/etc/nftables.conf", _NFTABLES),)),
    "nftguard": Way(("nftguard.service", "nftguard-boot.service"), daemon=True),
    "firewalld": Way(("firewalld.service",), files=(("/etc/firewalld/policies/mail-out.xml", POLICY),), daemon=True),
    "ufw": Way(("ufw.service",), UFW),
    "iptables-restore": Way(
        ("rules.service",),
        files=(
            ("/etc/systemd/system/rules.service", _IPTABLES),
            (
                "/etc/iptables.up.rules",
                (CHECKOUT / "tests/migrate/iptables.banmailports.rules").read_text(encoding="utf-8"),
            ),
        ),
    ),
}


class Rival:
    """A booted machine that has one of them, not started."""

    def __init__(self, image: Image, way: Way) -> None:
        self.way = way
        self.machine = Machine(image)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(self.machine)
            machine.run(["sh", "-ec", _QUIET])
            for path, text in self.way.files:
                machine.write_file(path, text)
            machine.run(["sh", "-ec", self.way.setup])
            machine.reboot()  # a network in which no firewall has ever been
            machine.run(["sh", "-ec", _GUEST])
            machine.peer(["ip", "-batch", "-"], stdin=_ROUTES)
            self.host = stack.enter_context(Namespace(machine.popen(["sleep", "infinity"]).pid))
            guest = machine.popen(["ip", "netns", "exec", "guest", "sleep", "infinity"])
            wait_until(lambda: _name(guest) == "sleep", "the guest")
            self.guest = stack.enter_context(Namespace(guest.pid))
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    @property
    def unit(self) -> str:
        """What to start."""
        return self.way.units[0]

    def start(self) -> None:
        """Start it anew, and wait until it blocks."""
        self.machine.run(["systemctl", "restart", self.unit])
        wait_until(lambda: MAIL[0] not in answering(self.host, MAIL), "the block")

    def stop(self) -> None:
        """Stop it, and wait until all is open."""
        self.machine.run(["systemctl", "stop", *self.way.units])
        wait_until(lambda: len(answering(self.host, MAIL)) == len(MAIL), "the end of the block")


def _name(process: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{process.pid}/comm").read_text(encoding="utf-8").strip()
