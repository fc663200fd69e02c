"""`python -m conviction` is the `conviction` command."""

from conviction.cli.main import main

if __name__ == "__main__":
    main()
