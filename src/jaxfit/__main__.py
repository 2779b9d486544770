"""The command line: `python -m jaxfit fit data.csv --model ...`, `... models`."""

import sys

from jaxfit._command import main

if __name__ == "__main__":
    sys.exit(main(is_own_process=True))
