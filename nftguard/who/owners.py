"""Whose a control group is, by its path: the unit, the login session, the container. Pure.

Only what systemd or root named counts: what a user or a container makes in the part of the tree that was given to it
can take any name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from nftguard.names import clean

_UNITS = (".service", ".scope", ".mount", ".socket", ".swap")  # the types of unit that run processes


def estate(path: str) -> str:
    """Give the part of the path that systemd or root made: the slices, and the unit or container in them."""
    parts = path.strip("/").split("/")
    at = _first(parts)
    named = parts[: at + 1] if at < len(parts) and parts[at].endswith(_UNITS) else parts[: at + 2]
    return "/" + "/".join(named)  # "/system.slice/ssh.service", "/lxc/web"


def unit_at(path: str) -> str:
    """Name the unit of the system's manager whose own group this path is; empty where it is none.

    It stands right below slices, which are systemd's own. What is below a unit or a container may be called like
    another unit: its owner can make and name it.
    """
    *above, name = path.strip("/").split("/")
    return name if name.endswith((*_UNITS, ".slice")) and all(part.endswith(".slice") for part in above) else ""


def _first(parts: list[str]) -> int:
    """Find the first part that is no slice; the length where there is none."""
    return next((at for at, part in enumerate(parts) if not part.endswith(".slice")), len(parts))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a cgroup is. Every field is fit to be shown, and empty where there is none."""

    unit: str = ""  # of the system's manager: "ssh.service", "session-3.scope", "user@1000.service"
    user_unit: str = ""  # below user@….service, by that user's own word: "app-foo.scope"
    session: str = ""  # of a login, as `loginctl` lists it
    container: str = ""  # engine and name: "docker:0123456789ab", "lxc:web"


_SLICES = r"(?:/[^/]+\.slice)*"
_ID = r"(?P<name>[0-9a-f]{12})[0-9a-f]{52}"
_POD = r"pod(?P<pod>[0-9a-f_-]{32,36})"
# Where each engine puts its containers, by itself ("cgroupfs") or through systemd. Anchored at the root: the same name
# further down was made by somebody else. The monitors (libpod-conmon-, crio-conmon-, lxc.monitor) are no containers.
_PLACES = (
    ("kubernetes", rf"{_SLICES}/[^/]*kubepods(?:-[^/]+)?-{_POD}\.slice/(?:cri-containerd|crio|docker)-{_ID}\.scope"),
    ("kubernetes", rf"(?:/kubelet)?/kubepods(?:/burstable|/besteffort)?/{_POD}/(?:crio-)?{_ID}"),
    ("docker", rf"{_SLICES}/docker-{_ID}\.scope"),
    ("docker", rf"/docker/{_ID}"),
    ("podman", rf"{_SLICES}/libpod-{_ID}\.scope"),
    ("podman", rf"/libpod_parent/libpod-{_ID}"),
    ("containerd", rf"{_SLICES}/nerdctl-{_ID}\.scope"),
    ("lxc", r"/lxc\.payload[./](?P<name>[^/]+)"),
    ("lxc", r"/lxc/(?P<name>[^/]+)"),
    ("nspawn", rf"/machine\.slice{_SLICES}/machine-(?P<name>[^/]+)\.scope(?!/supervisor(?:/|\Z))"),
    ("nspawn", rf"{_SLICES}/systemd-nspawn@(?P<name>[^/]+)\.service/payload"),
)
_ENGINES = [(engine, re.compile(pattern + r"(?=/|\Z)")) for engine, pattern in _PLACES]
_LIBVIRT = re.compile(r"(?:qemu|xen|lxc|ch)-[0-9]+-(.+)")  # virDomainGenerateMachineName


@lru_cache(maxsize=1024)
def owner(path: str) -> Owner:
    """Tell whose a cgroup is by its path below the root.

    The unit is the first one below the slices: what follows it was made by the unit itself, or by a user.
    """
    parts = path.strip("/").split("/")
    at = _first(parts)
    if at == len(parts):
        return Owner()
    head, above = parts[at], parts[at - 1] if at else ""
    session = (
        re.fullmatch(r"session-([A-Za-z0-9]+)\.scope", head) if re.fullmatch(r"user-[0-9]+\.slice", above) else None
    )
    user_unit = ""
    if re.fullmatch(r"user@[0-9]+\.service", head):
        below = [part for part in parts[at + 1 :] if not part.endswith(".slice")]
        user_unit = below[0] if below and below[0].endswith(_UNITS) else ""
    return Owner(
        unit=clean(head) if head.endswith(_UNITS) else "",
        user_unit=clean(user_unit),
        session=session[1] if session else "",
        container=_container(path),
    )


def _container(path: str) -> str:
    for engine, pattern in _ENGINES:
        if found := pattern.match(path):
            name = clean(found["name"])
            if engine == "kubernetes":
                return f"{engine}:{found['pod'].replace('_', '-')}/{name}"
            return _machine(found["name"]) if engine == "nspawn" else f"{engine}:{name}"
    return ""


def _machine(escaped: str) -> str:
    """Give the name of what systemd-machined knows: a container of nspawn's, or a guest of libvirt's."""
    # "web\x2d1" is "web-1": systemd.unit(5)
    raw = re.sub(
        rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), escaped.encode(errors="surrogateescape")
    )
    name = clean(raw)
    guest = _LIBVIRT.fullmatch(name)
    return f"libvirt:{guest[1]}" if guest else f"nspawn:{name}"
