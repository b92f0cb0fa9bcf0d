"""`python -m infra.local`: see `commands`."""

import sys

from infra.local.signals import treat_sigterm_as_sigint


def main() -> int:
    treat_sigterm_as_sigint()
    try:
        from infra.local import commands  # takes half a second, so Ctrl-C is handled here too

        return commands.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
