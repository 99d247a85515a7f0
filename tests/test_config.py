"""The configuration: what is taken, and how each mistake is told."""
# ruff: noqa: E501 - a table of mistakes reads best with one a line

from __future__ import annotations

import contextlib
import ipaddress
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftguard import values
from nftguard.config import Config, load
from nftguard.errors import ConfigError
from nftguard.model import Action, Hook, Protocol
from nftguard.ports import Ports
from nftguard.resolver import entries
from tests.conftest import ORIGIN
from tests.examples import config_of, table_of

ROOT = Path(__file__).parent.parent
BLOCK = '[[block]]\nname = "mail"\nports = [25]\n'


def problems(folder: Path, text: str | bytes) -> list[str]:
    """Load the text; give every problem without the file's name, which must stand in front of each."""
    path = folder / "nftguard.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 78
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_the_shipped_file_blocks_what_the_origins_rules_blocked() -> None:
    (block,) = load(ROOT / "conf/nftguard.toml").block
    assert sorted(ports.first for ports in block.resolved()) == sorted(ORIGIN)
    assert (block.hooks, block.protocols, block.action) == ((Hook.OUTPUT,), (Protocol.TCP,), Action.DROP)


def test_every_key_is_shown_in_the_shipped_file_with_its_default() -> None:
    """Uncommented, the file still loads, and every key of [log] and [service] has the value that it has anyway."""
    text = (ROOT / "conf/nftguard.toml").read_text()
    keys = {*Config.model_fields["block"].annotation.__args__[0].model_fields}  # type: ignore[union-attr]
    keys |= {*type(Config().log).model_fields, *type(Config().service).model_fields}
    shown = {line.strip("# ").split(" = ")[0] for line in text.splitlines() if " = " in line}
    assert keys <= shown
    tables = "\n".join(
        line.removeprefix("# ") for line in text[text.index("\n[log]") :].splitlines() if not line.startswith("#  ")
    )
    loaded = config_of(f"{BLOCK}\n{tables}")
    assert (loaded.log, loaded.service) == (Config().log, Config().service)


def test_the_origins_list_names_995_twice_and_that_is_no_error() -> None:
    twice = config_of(f'[[block]]\nname = "mail"\nports = {[*ORIGIN, 995, "990-999", "@mail"]}')
    assert len(twice.block[0].resolved()) == len({*ORIGIN, *range(990, 1000)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["block: nothing is blocked; write at least one [[block]] with its ports"]),
        ("block = []", ["block: nothing is blocked; write at least one [[block]] with its ports"]),
        ("[[block]]", ["block[0].name: is missing; every block needs it", "block[0].ports: is missing; every block needs it"]),
        ('[[block]]\nname = "a"\nports = []', ["block[0].ports: is empty; list at least one"]),
        (BLOCK + "hooks = []", ["block[0].hooks: is empty; list at least one"]),
        (BLOCK + "except_ports = [25]", ["block[0].except_ports: takes out every port of the block; leave some or drop it"]),
        (BLOCK + "prots = 1", ["block[0].prots: unknown key; did you mean 'ports'?"]),
        (BLOCK + "xyz = 1", ["block[0].xyz: unknown key; there are name, ports, except_ports, protocols, hooks, action, connections, allow"]),
        ("[blok]\n" + BLOCK, ["blok: unknown key; did you mean 'block'?"]),
        (BLOCK + "[log]\ntraget = 1", ["log.traget: unknown key; did you mean 'target'?"]),
        (BLOCK + '[log]\ntarget = "jurnal"', ["log.target: 'jurnal' is not one of 'journal', 'kernel', 'none'; did you mean 'journal'?"]),
        (BLOCK + "[log]\ngroup = 65536", ["log.group: 65536: input should be less than or equal to 65535"]),
        (BLOCK + '[log]\ngroup = "25"', ["log.group: '25': input should be a valid integer"]),
        (BLOCK + '[log]\nrate = "1/week per flow"', ["log.rate: '1/week per flow' is not a rate like '1/minute per flow' (per second, minute, hour or day)"]),
        (BLOCK + '[log]\nprefix = "a\\"b"', ["log.prefix: nft cannot take '\"' in a log prefix; use printable ASCII without quotes, \\ and $"]),
        (BLOCK + '[log]\nprefix = "$x"', ["log.prefix: nft cannot take '$' in a log prefix; use printable ASCII without quotes, \\ and $"]),
        (BLOCK + '[log]\nprefix = "{prot}"', ["log.prefix: no field {prot}; there are {block}, {hook}, {protocol}, {port}, as they are"]),
        (BLOCK + '[log]\nprefix = "{port!r:>500}"', ["log.prefix: no field {port…}; there are {block}, {hook}, {protocol}, {port}, as they are"]),
        (BLOCK + '[log]\nprefix = "{"', ["log.prefix: Single '{' encountered in format string; write a brace as {{ or }}"]),
        (BLOCK + "[service]\nresync = 5", ["service.resync: 5 is not a time between '1s' and '1d', like '30s', '5min' or '1h'"]),
        (BLOCK + '[service]\nresync = "0s"', ["service.resync: '0s' is not a time between '1s' and '1d', like '30s', '5min' or '1h'"]),
        (BLOCK + BLOCK, ["block[1].name: 'mail' is already a block of {file}; rename one"]),
        ('[[block]]\nname = "a{b"\nports = [1]', ["block[0].name: 'a{b' cannot be a name; use up to 32 letters, digits, '-' and '_', beginning with a letter"]),
        ('[[block]]\nname = 5\nports = [1]', ["block[0].name: is a string in quotes, not 5"]),
        ('[[block]]\nname = "a"\nports = 25', ["block[0].ports: is a list, as in [25]"]),
        (BLOCK + 'protocols = ["udp"]\nconnections = "new"', ["block[0].connections: 'new' needs a protocol with connections; give udp a block with 'all'"]),
        (BLOCK + "allow = 5", ["block[0].allow: is 5; write it as a table: { users = [...], to = [...] }"]),
        (BLOCK + "allow = { user = [] }", ["block[0].allow.user: unknown key; did you mean 'users'?"]),
        (BLOCK + 'allow = { users = "postfix" }', ["block[0].allow.users: is a list, as in ['postfix']"]),
        (BLOCK + 'allow = { users = ["a b"] }', ["block[0].allow.users[0]: 'a b' is no name of a user or group; write it as in /etc/passwd, or its number"]),
        (BLOCK + 'allow = { groups = [4294967295] }', ["block[0].allow.groups[0]: 4294967295 is no name of a user or group; write it as in /etc/passwd, or its number"]),
        (BLOCK + 'allow = { units = ["postfix"] }', ["block[0].allow.units[0]: 'postfix' does not end with .service, .scope, .slice, .socket, .mount, .swap; did you mean 'postfix.service'?"]),
        (BLOCK + 'allow = { units = ["a@.service"] }', ["block[0].allow.units[0]: 'a@.service' is a template or the root; name an instance, as in 'name@instance.service'"]),
        (BLOCK + 'allow = { units = ["../x.service"] }', ["block[0].allow.units[0]: '../x.service' is no name of a systemd unit; `systemctl list-units` lists them"]),
        (BLOCK + 'allow = { to = ["0.0.0.0/0"] }', ["block[0].allow.to[0]: '0.0.0.0/0' is everybody; take the port out of the block instead"]),
        (BLOCK + 'allow = { to = ["10.0.0.7/8"] }', ["block[0].allow.to[0]: '10.0.0.7/8' is an address within 10.0.0.0/8; write the one or the other"]),
        (BLOCK + 'allow = { to = ["@lokal"] }', ["block[0].allow.to[0]: no '@lokal' among addresses; there is '@local', the networks that this host is on"]),
        (BLOCK + 'allow = { from = ["10.0.0.300"] }', ["block[0].allow.from[0]: '10.0.0.300' is no address, prefix or host name; write them as '198.51.100.7', '10.0.0.0/8', '2001:db8::/32' or 'smtp.example.org'"]),
        (BLOCK + 'allow = { interfaces = ["*"] }', ["block[0].allow.interfaces[0]: '*' is every interface; take the hook out of the block instead"]),
        (BLOCK + 'allow = { interfaces = ["eth 0"] }', ["block[0].allow.interfaces[0]: 'eth 0' is no name of an interface, like 'eth0', or 'wg*' for all that begin with it"]),
        (BLOCK + 'allow = { interfaces = ["eth0:1"] }', ["block[0].allow.interfaces[0]: 'eth0:1' is a label of eth0, no interface; list 'eth0', or its address under from"]),
        (BLOCK + 'allow = { interfaces = [":", "..", "a*b", "br-0123456789abc*", "br-0123456789ab*"] }', [
            "block[0].allow.interfaces[0]: ':' is no name of an interface, like 'eth0', or 'wg*' for all that begin with it",
            "block[0].allow.interfaces[1]: '..' is no name of an interface, like 'eth0', or 'wg*' for all that begin with it",
            "block[0].allow.interfaces[2]: 'a*b' is no name of an interface, like 'eth0', or 'wg*' for all that begin with it",
            "block[0].allow.interfaces[3]: 'br-0123456789abc*' is too long for the name of an interface: at most 15 characters",
            "block[0].allow.interfaces[4]: 'br-0123456789ab*' is too long for the name of an interface: at most 15 characters",
        ]),
        (BLOCK + 'allow = { to = ["::ffff:1.2.3.4"], from = ["::ffff:10.0.0.0/104", "::ffff:0:0/96"] }', [
            "block[0].allow.to[0]: '::ffff:1.2.3.4' is IPv4, which no packet carries as IPv6; write 1.2.3.4",
            "block[0].allow.from[0]: '::ffff:10.0.0.0/104' is IPv4, which no packet carries as IPv6; write 10.0.0.0/8",
            "block[0].allow.from[1]: '::ffff:0:0/96' is everybody; take the port out of the block instead",
        ]),
        (BLOCK + 'allow = { to = ["local", "lo"] }', [
            "block[0].allow.to[0]: 'local' is no host's name; did you mean '@local'?",
            "block[0].allow.to[1]: 'lo' is an interface, list it under interfaces; its addresses are '127.0.0.0/8' and '::1'",
        ]),
        (BLOCK + 'allow = { users = [1.5], groups = [true] }', [
            "block[0].allow.users[0]: is a name in quotes, or a whole number, not 1.5",
            "block[0].allow.groups[0]: is a name in quotes, or a whole number, not true",
        ]),
        (BLOCK + 'allow = { units = ["postfix.servce", "a.timer"] }', [
            "block[0].allow.units[0]: 'postfix.servce' does not end with .service, .scope, .slice, .socket, .mount, .swap; did you mean 'postfix.service'?",
            "block[0].allow.units[1]: 'a.timer' does not end with .service, .scope, .slice, .socket, .mount, .swap; a timer or target, say, sends nothing",
        ]),
        (BLOCK + 'allow = { to = ["::1"], to = ["::2"] }', ["is not valid TOML: the key 'to' stands twice (at line 4, column 37)"]),
        (BLOCK + "ports = [26]", ["is not valid TOML: a key stands twice (at end of document)"]),
        ('[[block]]\nname = "a"\nports = ["25,26"]', ["block[0].ports[0]: no service '25,26'; each port is an entry of its own"]),
        (BLOCK + 'hooks = ["forward"]\nallow = { users = ["a"] }', ["block[0].allow.users: only what this host sends has a sender; the block lacks output"]),
        (BLOCK + 'hooks = ["bridge"]\naction = "reject"', ["block[0].action: 'reject' cannot be sent from between two ports of a bridge; give bridge a block of its own"]),
        ('[[block]]\nname = "bridge"\nports = [1]', ["block[0].name: 'bridge' cannot be the name of a block: what belongs to bridges is called so; take another"]),
        ("block = 5", ["block: is 5; write it as [[block]]"]),
        (BLOCK + "[[log]]", ["log: is [{}]; write it as a table: [log]"]),
        ("ports = [25\n", ["is not valid TOML: Unclosed array (at end of document)"]),
        (b"\xff\xfe", ["is not UTF-8 text"]),
        (b"#" * (1 << 20) + b"#", ["is larger than 1 MiB; that is no configuration of nftguard"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_key_and_way_out(tmp_path: Path, text: str | bytes, told: list[str]) -> None:
    assert problems(tmp_path, text) == [line.replace("{file}", str(tmp_path / "nftguard.toml")) for line in told]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = '[[block]]\nname = "a b"\nports = [25, 0, "x-y", 70000]\nhook = 1\n[log]\nrate = 1\n[service]\nonstop = 1'
    assert [line.split(": ")[0] for line in problems(tmp_path, text)] == [
        "block[0].name",
        "block[0].ports[1]",
        "block[0].ports[2]",
        "block[0].ports[3]",
        "block[0].hook",
        "log.rate",
        "service.onstop",
    ]


@pytest.mark.parametrize(
    "name", ["x" * 33, "", "1a", "a.b", "a b", "a;b", "a\nb", "ä", "a{", 'a"', "a#", "-a", "@a", "$a"]
)
def test_a_name_that_nft_would_read_as_syntax_is_refused(tmp_path: Path, name: str) -> None:
    escaped = name.replace('"', '\\"').replace("\n", "\\n")
    (line,) = problems(tmp_path, f'[[block]]\nname = "{escaped}"\nports = [1]')
    assert line.startswith("block[0].name: ")
    assert "cannot be a name" in line


def test_a_prefix_is_measured_as_the_kernel_will_see_it(tmp_path: Path) -> None:
    text = '[[block]]\nname = "mail"\nports = [65535]\n[log]\ntarget = "kernel"\nprefix = "{port}%s"'
    config_of(text % ("x" * 122))
    (line,) = problems(tmp_path, text % ("x" * 123))
    assert line.startswith("log.prefix: gives 128 characters for '65535xxx")
    assert line.endswith("; the kernel takes 127")


def test_drop_ins_add_blocks_and_replace_single_keys(tmp_path: Path) -> None:
    path = tmp_path / "guard.toml"
    path.write_text(BLOCK + '[log]\ntarget = "kernel"\nrate = "2/hour per flow"\n[service]\nresync = "9s"')
    folder = tmp_path / "guard.d"
    folder.mkdir()
    (folder / "20.toml").write_text('[[block]]\nname = "two"\nports = [2]\n[log]\nrate = "3/day per flow"')
    (folder / "10.toml").write_text('[[block]]\nname = "one"\nports = [1]\n[log]\nrate = "4/day per flow"')
    (folder / "note.txt").write_text("not read")
    loaded = load(path)
    assert [block.name for block in loaded.block] == ["mail", "one", "two"]
    assert (loaded.log.target, loaded.log.rate.count, loaded.service.resync) == ("kernel", 3, 9)


def test_a_mistake_in_a_drop_in_names_the_drop_in(tmp_path: Path) -> None:
    path = tmp_path / "nftguard.toml"
    path.write_text(BLOCK)
    folder = tmp_path / "nftguard.d"
    folder.mkdir()
    (folder / "a.toml").write_text('[[block]]\nname = "x"\nports = [0]')
    (folder / "b.toml").write_text('[[block]]\nname = "mail"\nports = [1]')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [(Path(problem.file).name, problem.key) for problem in caught.value.problems] == [
        ("a.toml", "block[0].ports[0]"),
        ("b.toml", "block[0].name"),
    ]


@pytest.mark.parametrize(("kind", "says"), [("missing", "No such file"), ("folder", "Is a directory")])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, kind: str, says: str) -> None:
    path = tmp_path / "nftguard.toml"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{path}: cannot be read: {says}" in str(caught.value)


_VALUES = st.recursive(
    st.one_of(st.integers(), st.text(max_size=9), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "ports", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value if not 0xD800 <= ord(letter) < 0xE000) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


@settings(max_examples=300)
@given(
    key=st.sampled_from(["block", "block.name", "block.ports", "block.hooks", "block.action", "log", "log.prefix", "log.rate",
                         "log.group", "service", "service.resync", "service.on_stop", "x"]),
    value=_VALUES,
)  # fmt: skip
def test_any_value_anywhere_is_taken_or_told_never_a_traceback(key: str, value: object) -> None:
    table, _, name = key.partition(".")
    if not name:
        text = f"{table} = {_toml(value)}"
    elif table == "block":
        text = f"[[block]]\n{name} = {_toml(value)}\n" + ("ports = [1]\n" if name != "ports" else 'name = "a"\n')
    else:
        text = f"{BLOCK}[{table}]\n{name} = {_toml(value)}"
    with contextlib.suppress(ConfigError):
        assert config_of(text).block


_PLACE = st.one_of(
    st.from_regex(r"[a-z0-9.:/@_-]{1,20}", fullmatch=True),
    st.ip_addresses().map(str),
    st.sampled_from(
        ["relay1", "mail.host1", "h1.", "10.0.0.1", "1.2.3", "fe80::1", "::", "dead.beef", "@local", "a.b/8"]
    ),
)


@settings(max_examples=500)
@given(_PLACE)
def test_a_place_is_one_thing_alone(text: str) -> None:
    """A host's name to be looked up, the networks that this host is on, or what is an address here and now."""
    with contextlib.suppress(ValueError):
        found = values.place(text)
        if values.is_host(found):
            assert entries.valid(found)
            with pytest.raises(ValueError, match="does not appear"):
                ipaddress.ip_network(found)
        elif found != values.LOCAL:
            assert ipaddress.ip_network(found)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_told(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_bytes(data)
        with pytest.raises(ConfigError):
            load(path)


def test_a_listed_port_range_of_another_block_stays_two_counters() -> None:
    table = table_of('[[block]]\nname = "a"\nports = ["1-100"]\n[[block]]\nname = "b"\nports = ["100-300", 100]\n')
    assert sorted(table.counters) == ["a.output.tcp.1-100", "b.output.tcp.100-300"]
    ranges = table.maps["output.tcp.ranges"].elements
    assert [*ranges] == [Ports(1, 99), Ports(101, 300)]
    assert [*table.maps["output.tcp"].elements] == [Ports(100, 100)]
