"""`python -m fedvlm`."""

from fedvlm.cli import main

main()
