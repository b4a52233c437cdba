"""``python -m paramerge.training``, and ``accelerate launch -m paramerge.training``: ``paramerge train``."""

import sys

from paramerge.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
