"""``python -m paramerge.cli``."""

from paramerge.cli.main import main

main()
