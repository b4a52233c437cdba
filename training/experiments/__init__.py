"""The paper's tables and figures, rerun: planned, carried out, judged.

``paramerge experiment`` on the command line. From Python: :func:`plan.make_plan` with one of
:data:`registry.EXPERIMENTS`, then :func:`run.run_experiment`. An experiment is data: cells to draw and
measure, and claims that are each put to a test of their own. Nothing is imported here: plans are made without
torch.
"""
