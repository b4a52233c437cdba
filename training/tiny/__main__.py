"""``python -m paramerge.training.tiny``."""

from paramerge.training.tiny.command import main

if __name__ == "__main__":
    main()
