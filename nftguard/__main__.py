"""The way in: rules first, heavy imports after."""

from __future__ import annotations

import sys

from nftguard import bootscript


def main() -> None:
    """Run the command line."""
    context = bootscript.early(sys.argv[1:])
    from nftguard.cli import cli

    cli(obj=context, prog_name="nftguard")


if __name__ == "__main__":
    main()
