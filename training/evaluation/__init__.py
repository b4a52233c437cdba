"""The quality of pictures in numbers: diversity, and the fit to their texts and their subject.

``paramerge evaluate`` on the command line; from Python :func:`~paramerge.training.evaluation.evaluate.
evaluate_drawn` and ``evaluate_folders``, or :func:`~paramerge.training.evaluation.measuring.measure` for sets
of pictures of one's own. Every number carries the name of the model that computed it. Nothing is imported
here: plans are made without torch.
"""
