"""nftguard-metrics.service as systemd runs it, and Debian's own Prometheus that reads it and raises alerts."""

from __future__ import annotations

import json
import re
import sys
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.boot.base import CHECKOUT
from tests.boot.machine import Machine
from tests.boot.suites import TRIXIE
from tests.boot.units import check_unprivileged, shown
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.boot.image import Image

pytestmark = pytest.mark.timeout(600)  # an image with Prometheus may have to be built

_ON_THE_NEWER = pytest.mark.parametrize("image", [TRIXIE], ids=str, indirect=True)  # where the image has Prometheus
_DROP_IN = "/etc/nftguard.d/test.toml"
_UNIT, _GUARD = "nftguard-metrics.service", "nftguard.service"
_ATTEMPT = {"hook": "output", "unit": "spam-sender.service"}
_SHIPPED = CHECKOUT / "contrib/prometheus"
_ASK = """
import socket, sys
where, path = sys.argv[1:]
if where.startswith("/"):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(where)
else:
    sock = socket.create_connection(("127.0.0.1", int(where)), 5)
sock.settimeout(10)
sock.sendall(f"GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n".encode())
answer = b""
while data := sock.recv(65536):
    answer += data
sys.stdout.write(answer.partition(b"\\r\\n\\r\\n")[2].decode())
"""
_TRY = "import socket, sys; s = socket.socket(); s.settimeout(0.1); s.connect_ex((sys.argv[1], 25))"


@pytest.fixture(scope="module")
def watched(image: Image) -> Iterator[Machine]:
    """A machine, on the newer release with Prometheus; nothing runs yet."""
    with Machine(image) as machine:
        if machine.suite == TRIXIE:
            machine.run(["apt-get", "--yes", "install", "prometheus"], timeout=100)
            machine.run(["systemctl", "disable", "--now", "prometheus.service"])
        yield machine


@pytest.fixture
def serving(watched: Machine) -> Iterator[Machine]:
    """The same with both services, which are stopped in the end."""
    watched.run(["systemctl", "start", _GUARD, _UNIT])
    yield watched
    watched.run(["systemctl", "stop", _UNIT, _GUARD])


def ask(machine: Machine, path: str, where: str = "9736", *, check: bool = True) -> str:
    return machine.run(["/usr/bin/python3", "-c", _ASK, where, path], check=check).stdout


def value(machine: Machine, name: str, where: str = "9736", **labels: str) -> float | None:
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(ask(machine, "/metrics", where))
        for sample in family.samples
    }
    return found.get((f"nftguard_{name}", tuple(sorted(labels.items()))))


def wait_for(machine: Machine, what: float, name: str, **labels: str) -> None:
    wait_until(lambda: value(machine, name, **labels) == what, f"{name} {labels} to be {what}", pause=0.1)


def attempt(machine: Machine, unit: str) -> None:
    machine.run(["systemd-run", "--quiet", "--wait", f"--unit={unit}", "/usr/bin/python3", "-c", _TRY, "192.0.2.1"])


def test_neither_service_starts_or_stops_the_other(watched: Machine) -> None:
    assert shown(watched, _UNIT, "UnitFileState") == "disabled", "it is off by default"
    watched.run(["systemctl", "start", _UNIT])
    assert value(watched, "up") == 0
    assert value(watched, "status_problem", problem="missing") == 1
    assert shown(watched, _GUARD, "ActiveState") == "inactive"
    serving = shown(watched, _UNIT, "MainPID")

    watched.run(["systemctl", "start", _GUARD])
    wait_for(watched, 1, "up")
    assert value(watched, "state", state="protected") == 1
    guard = shown(watched, _GUARD, "MainPID")
    watched.run(["systemctl", "stop", _GUARD])
    wait_for(watched, 0, "up")
    watched.run(["systemctl", "start", _GUARD])
    wait_for(watched, 1, "up")
    assert shown(watched, _UNIT, "MainPID") == serving, "it goes on all the while"

    guard = shown(watched, _GUARD, "MainPID")
    watched.run(["systemctl", "restart", _UNIT])
    watched.run(["systemctl", "stop", _UNIT])
    assert shown(watched, _GUARD, "MainPID") == guard
    watched.run(["systemctl", "stop", _GUARD])


def test_it_has_no_privilege_and_reads_only_what_all_may_read(serving: Machine) -> None:
    pid = check_unprivileged(serving, _UNIT)
    inside = ["nsenter", f"--target={pid}", "--mount", "sh", "-c"]
    for write in (": >/run/nftguard/status.json", ": >/run/nftguard/new", "rm /run/nftguard/status.json"):
        done = serving.run([*inside, write], check=False)
        assert "Read-only file system" in done.stderr, "not even root could, where it is"
    for read in ("cat /etc/nftguard.d/*", "ls /var/lib/nftguard/last.nft"):
        assert serving.run([*inside, read], check=False).returncode
    assert serving.run([*inside, "cat /run/nftguard/status.json"]).returncode == 0
    knock = "import socket; socket.create_connection(('192.0.2.2', 9736), 1)"
    assert serving.peer([sys.executable, "-c", knock], check=False).returncode, "it is for this host"


def test_attempts_are_told_by_their_unit(serving: Machine) -> None:
    attempt(serving, "spam-sender")
    wait_for(serving, 1, "attempts_total", **_ATTEMPT)
    place = {"block": "mail", "hook": "output", "protocol": "tcp", "port": "25"}
    packets = value(serving, "blocked_packets_total", **place)
    assert packets
    assert packets >= 1


def test_it_serves_on_a_socket_where_it_is_told_to(serving: Machine) -> None:
    path = "/run/nftguard-metrics/socket"
    told = f"[Service]\nExecStart=\nExecStart=/usr/bin/nftguard metrics --listen unix:{path}\n"
    serving.write_file(f"/etc/systemd/system/{_UNIT}.d/override.conf", told)
    try:
        serving.run(["systemctl", "daemon-reload"])
        serving.run(["systemctl", "restart", _UNIT])
        assert value(serving, "up", path) == 1
        as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", _ASK, path, "/metrics"]
        assert "nftguard_up 1" in serving.run(as_nobody).stdout
    finally:
        serving.run(["rm", "--recursive", f"/etc/systemd/system/{_UNIT}.d"])
        serving.run(["systemctl", "daemon-reload"])


# Prometheus: Debian's own, with the configuration and the rules that are shipped, in more of a hurry


@pytest.fixture
def prometheus(serving: Machine) -> Iterator[Machine]:
    """The same with Prometheus."""
    config = (_SHIPPED / "prometheus.yml").read_text().replace("scrape_interval: 15s", "scrape_interval: 1s")
    serving.write_file("/etc/prometheus/prometheus.yml", f"global:\n  evaluation_interval: 1s\n{config}")
    rules = (_SHIPPED / "nftguard.rules.yml").read_text()
    serving.write_file("/etc/prometheus/nftguard.rules.yml", re.sub(r"\bfor: \w+", "for: 2s", rules))
    serving.run(["systemctl", "start", "prometheus.service"])
    wait_until(lambda: ask(serving, "/-/ready", "9090", check=False), "Prometheus", timeout=30, pause=0.2)
    yield serving
    serving.run(["systemctl", "stop", "prometheus.service"])


def query(machine: Machine, expression: str) -> list[dict[str, Any]]:
    path = f"/api/v1/query?query={urllib.parse.quote(expression)}"
    return list(json.loads(ask(machine, path, "9090"))["data"]["result"])


def filled(expression: str) -> str:
    """Fill in an expression of the dashboard what Grafana would."""
    for name, instead in {"$__rate_interval": "1m", "$__range": "5m", "$job": "nftguard", "$instance": ".+"}.items():
        expression = expression.replace(name, instead)
    assert "$" not in expression
    return expression


def firing(machine: Machine) -> set[str]:
    alerts = json.loads(ask(machine, "/api/v1/alerts", "9090"))["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def wait_for_alert(machine: Machine, name: str) -> None:
    wait_until(lambda: name in firing(machine), f"the alert {name}", timeout=30, pause=0.3)


@_ON_THE_NEWER
def test_promtool_finds_nothing_to_say(serving: Machine) -> None:
    attempt(serving, "spam-sender")
    wait_for(serving, 1, "attempts_total", **_ATTEMPT)
    page = serving.run(["nftguard", "metrics", "--textfile", "-"]).stdout
    found = serving.run(["promtool", "check", "metrics"], stdin=page)
    assert found.stdout + found.stderr == ""
    for name in ("nftguard.rules.yml", "nftguard.test.yml", "prometheus.yml"):
        serving.write_file(f"/root/{name}", (_SHIPPED / name).read_text())
    serving.run(["promtool", "check", "config", "/root/prometheus.yml"])
    serving.run(["promtool", "test", "rules", "/root/nftguard.test.yml"])


@_ON_THE_NEWER
def test_alerts_fire_and_every_panel_has_something_to_draw(prometheus: Machine) -> None:
    machine = prometheus
    wait_until(lambda: query(machine, "nftguard_up == 1"), "the first scrape", pause=0.2)
    assert "NftguardDown" not in firing(machine)
    attempt(machine, "spam-sender")
    machine.write_file(_DROP_IN, "[")
    assert machine.run(["systemctl", "reload", _GUARD], check=False).returncode
    machine.write_file(_DROP_IN, '[service]\nownership = "off"\n')  # else nobody could delete the table
    machine.run(["systemctl", "reload", _GUARD])
    foe = machine.popen(["sh", "-c", "while :; do nft delete table inet nftguard; sleep 0.4; done"])
    wait_for_alert(machine, "NftguardRulesFought")
    wait_for_alert(machine, "NftguardReloadRefused")
    wait_for_alert(machine, "NftguardNewUnit")
    foe.kill()

    dashboard = json.loads((CHECKOUT / "contrib/grafana/nftguard.json").read_text())
    [state] = [panel["targets"][0]["expr"] for panel in dashboard["panels"] if panel["title"] == "State"]
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 10
    for expression in expressions:
        assert query(machine, filled(expression)), expression

    machine.run(["systemctl", "stop", _GUARD])
    wait_for_alert(machine, "NftguardDown")
    assert [found["value"][1] for found in query(machine, filled(state))] == ["3"], "no word"
    assert [found["metric"]["problem"] for found in query(machine, "nftguard_status_problem == 1")] == ["missing"]
    machine.run(["systemctl", "stop", _UNIT])
    wait_for_alert(machine, "NftguardMetricsDown")
    machine.run(["rm", _DROP_IN])
