from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.who.owners import Owner, estate, owner

ID = "0123456789ab" + "cdef" * 13
SHORT = ID[:12]
POD = "2f1c8e4a-9b7d-4c3e-8a6f-5d4c3b2a1908"
POD_ = POD.replace("-", "_")
KUBELET = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"
USER = "/user.slice/user-1000.slice"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/system.slice/ssh.service", Owner("ssh.service")),
        ("/system.slice/system-getty.slice/getty@tty1.service", Owner("getty@tty1.service")),
        ("/system.slice/mnt-nfs.mount", Owner("mnt-nfs.mount")),
        ("/system.slice/docker.service", Owner("docker.service")),
        ("/init.scope", Owner("init.scope")),
        ("/system.slice/run-u12.service/workers", Owner("run-u12.service")),
        (f"{USER}/session-3.scope", Owner("session-3.scope", session="3")),
        (f"{USER}/session-c1.scope", Owner("session-c1.scope", session="c1")),
        (f"{USER}/user@1000.service/init.scope", Owner("user@1000.service", "init.scope")),
        (
            f"{USER}/user@1000.service/app.slice/app-gnome-firefox-4021.scope",
            Owner("user@1000.service", "app-gnome-firefox-4021.scope"),
        ),
        (f"{USER}/user@1000.service/app.slice", Owner("user@1000.service")),
        ("/", Owner()),
        ("", Owner()),
        ("/system.slice", Owner()),
        ("/foo/bar.service", Owner()),
    ],
)
def test_units_and_sessions(path: str, expected: Owner) -> None:
    assert owner(path) == expected


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", f"docker:{SHORT}"),
        (f"/docker/{ID}", f"docker:{SHORT}"),
        (f"/docker/{ID}/init.scope", f"docker:{SHORT}"),
        (f"/machine.slice/libpod-{ID}.scope", f"podman:{SHORT}"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"podman:{SHORT}"),
        (f"/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope/container", f"podman:{SHORT}"),
        (f"/libpod_parent/libpod-{ID}", f"podman:{SHORT}"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),
        (f"/system.slice/nerdctl-{ID}.scope", f"containerd:{SHORT}"),
        ("/lxc.payload.web", "lxc:web"),
        ("/lxc.payload.web-1/system.slice/ssh.service", "lxc:web-1"),
        ("/lxc.payload/web", "lxc:web"),
        ("/lxc/101/ns/system.slice/cron.service", "lxc:101"),
        ("/lxc.monitor.web", ""),
        ("/lxc.monitor/101", ""),
        ("/machine.slice/machine-web.scope/payload/system.slice/ssh.service", "nspawn:web"),
        (r"/machine.slice/machine-web\x2d1.scope/payload/init.scope", "nspawn:web-1"),
        ("/machine.slice/machine-web.scope/supervisor", ""),
        ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "nspawn:web"),
        (r"/machine.slice/systemd-nspawn@my\x2dweb.service/payload", "nspawn:my-web"),
        ("/machine.slice/systemd-nspawn@web.service/supervisor", ""),
        (r"/machine.slice/machine-qemu\x2d1\x2dvm1.scope/libvirt/emulator", "libvirt:vm1"),
        (r"/machine.slice/machine-lxc\x2d4711\x2dbox.scope", "libvirt:box"),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{ID}.scope",
            f"kubernetes:{POD}/{SHORT}",
        ),
        (f"/kubepods.slice/kubepods-pod{POD_}.slice/crio-{ID}.scope/container", f"kubernetes:{POD}/{SHORT}"),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/crio-conmon-{ID}.scope", ""),
        (
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/docker-{ID}.scope",
            f"kubernetes:{POD}/{SHORT}",
        ),
        (
            f"{KUBELET}/kubelet-kubepods-burstable-pod{POD_}.slice/cri-containerd-{ID}.scope",
            f"kubernetes:{POD}/{SHORT}",
        ),
        (f"/kubepods/burstable/pod{POD}/{ID}", f"kubernetes:{POD}/{SHORT}"),
        (f"/kubepods/pod{'ab' * 16}/crio-{ID}", f"kubernetes:{'ab' * 16}/{SHORT}"),
    ],
)
def test_containers_of_every_engine(path: str, container: str) -> None:
    assert owner(path).container == container


def test_a_container_that_systemd_made_has_its_scope_as_a_unit() -> None:
    assert owner(f"/system.slice/docker-{ID}.scope").unit == f"docker-{ID}.scope"
    assert owner(f"/docker/{ID}").unit == ""


INVENTED = [
    "shadowsocks.service",
    "system.slice/ssh.service",
    f"docker-{ID}.scope",
    f"docker/{ID}",
    "lxc.payload.web",
    "machine.slice/machine-web.scope/payload",
    f"machine.slice/libpod-{ID}.scope",
    f"kubepods.slice/kubepods-pod{POD_}.slice/crio-{ID}.scope",
    f"../../../system.slice/docker-{ID}.scope",
    "session-9.scope",
    "x\x1b[31m (ssh.service).scope",
    os.fsdecode(b"\xff\xfe.service"),
]


@pytest.mark.parametrize("invented", INVENTED)
@pytest.mark.parametrize("place", [f"{USER}/user@1000.service", f"{USER}/user@1000.service/app.slice"])
def test_what_a_user_makes_is_no_system_unit_no_container_and_no_session(place: str, invented: str) -> None:
    found = owner(f"{place}/{invented}")
    assert (found.unit, found.container, found.session) == ("user@1000.service", "", "")
    assert found.user_unit.isprintable()


@pytest.mark.parametrize("invented", INVENTED)
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (f"/system.slice/docker-{ID}.scope", Owner(f"docker-{ID}.scope", container=f"docker:{SHORT}")),
        ("/lxc.payload.own", Owner(container="lxc:own")),
        ("/system.slice/app.service", Owner("app.service")),
        (f"{USER}/session-3.scope", Owner("session-3.scope", session="3")),
    ],
)
def test_what_a_container_or_a_unit_makes_below_itself_stays_its_own(
    place: str, expected: Owner, invented: str
) -> None:
    assert owner(f"{place}/{invented}") == expected


@given(st.text(max_size=200))
def test_any_path_gives_printable_fields(path: str) -> None:
    found = owner(path)
    assert all(field.isprintable() for field in (found.unit, found.user_unit, found.session, found.container))
    estate(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/system.slice", "/system.slice"),
        ("/system.slice/a.service/b/c", "/system.slice/a.service"),
        (f"{USER}/user@1000.service/app.slice/x.scope", f"{USER}/user@1000.service"),
        ("/lxc/web/init.scope", "/lxc/web"),
        ("/init.scope", "/init.scope"),
    ],
)
def test_an_estate_is_what_root_or_systemd_made(path: str, expected: str) -> None:
    assert estate(path) == expected
