"""``python -m paramerge.training``, and ``accelerate launch -m paramerge.training``: the train command."""

from paramerge.training.command import main

if __name__ == "__main__":
    main()
