"""Ports that are blocked together."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from nftguard import services
from nftguard.cli_migrate import presets
from nftguard.presets import PRESETS
from tests.examples import config_of


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_can_be_blocked_with_the_protocols_that_it_names(name: str) -> None:
    protocols = [str(protocol) for protocol in PRESETS[name].protocols]
    config = config_of(f'[[block]]\nname = "a"\nports = ["@{name}"]\nprotocols = {protocols}\n')
    assert services.parse(f"@{name}") == PRESETS[name].ports
    listed = sum(ports.size for ports in PRESETS[name].ports)
    assert len(config.block[0].resolved()) == listed, "no port is listed twice"
    assert PRESETS[name].why.endswith(".")


def test_mail_is_what_it_always_was() -> None:
    assert [str(ports) for ports in PRESETS["mail"].ports] == ["25", "109", "110", "143", "465", "587", "993", "995"]


def test_the_parts_of_mail_make_up_mail() -> None:
    parts = [ports for name in ("smtp", "mail-submission", "mail-reading") for ports in PRESETS[name].ports]
    assert sorted(parts) == [*PRESETS["mail"].ports]


def test_the_table_shows_every_preset_with_its_ports_and_why() -> None:
    out = CliRunner().invoke(presets).stdout
    for name, preset in PRESETS.items():
        assert f"@{name}  " in out
        assert preset.why.split()[0] in out
    assert "@smtp  tcp 25\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_one_preset_is_shown_with_or_without_its_mark_and_as_json() -> None:
    for name in ("irc", "@irc"):
        assert CliRunner().invoke(presets, [name]).stdout.startswith("@irc  tcp 194 6660-6669")
    found = json.loads(CliRunner().invoke(presets, ["--json"]).stdout)
    assert [*found] == [*PRESETS]
    assert found["smtp"] == {"ports": ["25"], "protocols": ["tcp"], "why": PRESETS["smtp"].why}


def test_an_unknown_preset_is_refused_with_the_ones_there_are() -> None:
    done = CliRunner().invoke(presets, ["mial"])
    assert done.exit_code == 2
    assert "@mail, @smtp" in done.stderr
