"""`python -m aprilcli` is the console script."""

from aprilcli.cli import main

main()
