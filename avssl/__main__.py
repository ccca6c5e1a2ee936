"""`python -m avssl`: the command line, also where its script is not on the path."""

from avssl.cli import main

main()
