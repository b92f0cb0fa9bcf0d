"""`python -m infra.local`: see `commands`."""

import sys

from infra.local.interruption import take_sigterm_as_ctrl_c


def main() -> int:
    take_sigterm_as_ctrl_c()
    try:
        from infra.local import commands  # half a second, in which Ctrl-C may come as well

        return commands.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
