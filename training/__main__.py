"""The command `python -m training`, which is `mar train` in the form that torchrun starts."""

import sys

from runtime.cli.main import main

sys.argv.insert(1, "train")
main()
