"""`python -m cal_cli` is `cal`."""

from cal_cli.cli import main

if __name__ == "__main__":
    main()
