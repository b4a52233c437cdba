"""How good pictures are, in numbers: diversity, and how well they fit their texts and their subject.

``paramerge evaluate`` on the command line. Every number carries the name of the model that computed it.
"""

from paramerge.training.evaluation.clip import Clip, load_clip
from paramerge.training.evaluation.drawing import PictureJob, Sampling, draw_missing
from paramerge.training.evaluation.evaluate import Drawn, Results, evaluate_drawn, evaluate_folders
from paramerge.training.evaluation.lpips import DISTANCES, Perceptual, load_perceptual
from paramerge.training.evaluation.measuring import METRICS, Measures, SetScores, measure
from paramerge.training.evaluation.processes import Processes, find_processes
from paramerge.training.evaluation.sets import PictureSet
from paramerge.training.evaluation.ssim import pairs_of, ssim
from paramerge.training.evaluation.summary import Summary, Value, summed_up

__all__ = [
    "DISTANCES",
    "METRICS",
    "Clip",
    "Drawn",
    "Measures",
    "Perceptual",
    "PictureJob",
    "PictureSet",
    "Processes",
    "Results",
    "Sampling",
    "SetScores",
    "Summary",
    "Value",
    "draw_missing",
    "evaluate_drawn",
    "evaluate_folders",
    "find_processes",
    "load_clip",
    "load_perceptual",
    "measure",
    "pairs_of",
    "ssim",
    "summed_up",
]
