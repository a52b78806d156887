"""`python -m runtime.cli` is the command `mar`."""

from runtime.cli.main import main

if __name__ == "__main__":
    main()
