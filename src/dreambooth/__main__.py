"""Where `dreambooth` begins, and `python -m dreambooth`, which `torchrun` and `accelerate launch` start."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. An interruption of its import, which takes a while, ends in one line too."""
    try:
        from dreambooth import cli
    except KeyboardInterrupt:
        print("dreambooth: stopped", file=sys.stderr)
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
