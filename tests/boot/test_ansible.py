"""The Ansible role, run by ansible-core against a real machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.boot.installed import package
from tests.boot.machine import Machine
from tests.boot.suites import TRIXIE
from tests.boot.test_service import status, table

if TYPE_CHECKING:
    from tests.boot.image import Image

BIN = Path(sys.executable).parent
ROLES = Path(__file__).parents[2] / "contrib/ansible/roles"
# In the place of ssh, which would need a server inside: Ansible gives it the command as the last argument.
SSH = """\
#!/bin/sh
for command; do :; done
exec nsenter --target {init} --mount --uts --ipc --net --pid --cgroup -- \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 sh -c "$command"
"""
CONFIGURATION = """\
[defaults]
roles_path = {roles}
stdout_callback = ansible.builtin.default
callback_result_format = json
interpreter_python = /usr/bin/python3
host_key_checking = false

[connection]
pipelining = true

[ssh_connection]
ssh_executable = {folder}/ssh
ssh_args =
transfer_method = piped
"""


class Played(NamedTuple):
    exit: int
    output: str

    @property
    def changed(self) -> int:
        return int(re.findall(r"changed=(\d+)", self.output)[-1])


class Player:
    """Runs the role against a machine with the variables that it is given."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._folder = folder
        ssh = folder / "ssh"
        ssh.write_text(SSH.format(init=machine._init()))
        ssh.chmod(0o755)
        (folder / "ansible.cfg").write_text(CONFIGURATION.format(roles=ROLES, folder=folder))

    def play(self, *options: str, **variables: Any) -> Played:
        variables = {"nftguard_install": False, **variables}
        play = {
            "hosts": "all",
            "gather_facts": variables["nftguard_install"],
            "gather_subset": "min",
            "roles": [{"role": "nftguard", "vars": variables}],
        }
        (self._folder / "play.json").write_text(json.dumps([play]))
        command: list[str | Path] = [BIN / "ansible-playbook", "--inventory=machine,", *options, "play.json"]
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(self._folder / "ansible.cfg"),
            "ANSIBLE_HOME": str(self._folder),
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            command, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return Played(done.returncode, done.stdout + done.stderr)


def etc(machine: Machine) -> str:
    """Everything of /etc that is ours, with the times of its changes."""
    return machine.run(
        ["sh", "-c", "cd /etc && find . -path './nftguard*' -printf '%p %T@ %m %u\\n' -type f -exec cat {} +"]
    ).stdout


@pytest.mark.timeout(240)  # half a minute, if nothing else runs
@pytest.mark.parametrize("bare", [TRIXIE], indirect=True, ids=str)
def test_the_role_makes_a_host_what_its_variables_say_once_and_never_worse(bare: Image, tmp_path: Path) -> None:
    wanted = {
        "nftguard_blocks": [{"name": "mail", "ports": ["@mail", 2525, "6000-6063"], "allow": {"users": ["daemon"]}}],
        "nftguard_service": {"resync": "1h"},
    }
    install = {"nftguard_install": True, "nftguard_package_file": str(package(TRIXIE))}
    with Machine(bare) as machine:
        player = Player(machine, tmp_path)
        looked = player.play("--check", **wanted, **install)
        assert (looked.exit, etc(machine)) == (0, ""), looked.output
        assert looked.changed > 0

        first = player.play(**wanted, **install, nftguard_verify=True)
        assert first.exit == 0, first.output
        assert machine.run(["systemctl", "is-enabled", "nftguard"]).stdout == "enabled\n"
        assert status(machine)["state"] == "protected"
        assert "2525" in table(machine)

        again, settled = player.play(**wanted, **install), etc(machine)
        assert (again.exit, again.changed) == (0, 0), again.output

        wrong = [{"name": "web", "blocks": [{"name": "web", "prots": [80]}]}]
        refused = player.play(**wanted, nftguard_dropins=wrong)
        assert refused.exit != 0
        assert "unknown key; did you mean 'ports'?" in refused.output
        assert etc(machine) == settled
        astray = player.play(**wanted, nftguard_dropins=[{"name": "../web", "state": "absent"}])
        assert astray.exit != 0
        assert "the name of a drop-in" in astray.output

        pid = status(machine)["daemon"]["pid"]
        right = [{"name": "web", "blocks": [{"name": "web", "ports": [8025]}]}]
        changed = player.play(**wanted, nftguard_dropins=right)
        assert changed.exit == 0, changed.output
        assert "8025" in table(machine)
        assert status(machine)["daemon"]["pid"] == pid


def test_values_are_quoted_so_that_they_are_read_as_they_were(tmp_path: Path) -> None:
    hostile = 'a "quoted" \\ word\x7f\t\n[[block]] é 🚫 \' = ] } \u2028'
    values = {"text": hostile, "n": 5, "yes": True, "list": [1, "2-3", hostile], hostile: {"a b": hostile, "c": []}}
    part = {"blocks": [values, {"name": "x"}], "log": {"prefix": hostile}, "service": {"resync": "5min"}}
    (tmp_path / "vars.json").write_text(json.dumps({"nftguard__part": part}))
    written = tmp_path / "out.toml"
    template = ROLES / "nftguard/templates/nftguard.toml.j2"
    command: list[str | Path] = [
        BIN / "ansible",
        "localhost",
        "--connection=local",
        "--extra-vars",
        f"@{tmp_path}/vars.json",
    ]
    command += ["--module-name=ansible.builtin.template", "--args", f"src={template} dest={written}"]
    environment = os.environ | {"ANSIBLE_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tomllib.loads(written.read_text()) == {
        "block": part["blocks"],
        "log": part["log"],
        "service": part["service"],
    }
