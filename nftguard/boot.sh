#!/bin/sh
# Loads the last good ruleset at boot: in milliseconds, without Python. nftguard-boot.service runs it.
#
# The last good rules go in at once, whatever the configuration says by now: from here on nothing leaves through a port
# that was blocked when the host went down. Then, where the configuration or the program is another than the one they
# were made from, or there are none yet, the one-shot `nftguard apply` takes over. When that refuses a broken
# configuration, it says why, this unit fails for everybody to see, and the last good rules stay. They stay, too, where
# the configuration was tried with `nftguard try` and not confirmed: nobody has decided for it.
set -u
export LC_ALL=C # the order of drop-ins, as bootscript.py has it
config=${1:-/etc/nftguard.toml}
last=${STATE_DIRECTORY:-/var/lib/nftguard}/last.nft
tried=${STATE_DIRECTORY:-/var/lib/nftguard}/trial

loaded=no
# nft takes the beginning of a script that was cut for a whole one, hence the last line.
if [ -r "$last" ] && [ "$(tail -n 1 "$last")" = '# end' ]; then
    # The script creates the table: where one is live already, that is not an error and not to be touched.
    if error=$(nft -f "$last" 2>&1) || nft list tables inet | grep -qx 'table inet nftguard'; then
        loaded=yes
    else
        printf '%s\n' "$error" >&2
    fi
fi
here=$(readlink -f "$0")
mark=$(b2sum -l 128 -- "$config" "${config%.toml}.d"/*.toml /etc/services "${here%/*}/__init__.py" 2>/dev/null | b2sum -l 128)
read -r first 2>/dev/null <"$last" || first=
if [ $loaded = yes ] && [ "$first" = "# nftguard ${mark%% *}" ]; then
    exit 0
fi
# As bootscript.py takes it with nothing besides: of the files alone.
read -r first 2>/dev/null <"$tried" || first=
mark=$(b2sum -l 128 -- "$config" "${config%.toml}.d"/*.toml 2>/dev/null | b2sum -l 128)
if [ $loaded = yes ] && [ "$first" = "${mark%% *}" ]; then
    echo "$config was tried and not confirmed: the last good rules stay; \`nftguard apply\` takes it, or edit it" >&2
    exit 0
fi
exec nftguard --config "$config" apply --force
