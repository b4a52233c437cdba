"""The recipe of "emoji-diffusion", a small text-to-image model in the exact layout of Stable Diffusion 1.5.

``python -m paramerge.training.tiny --out DIR`` fetches the pictures, trains each part, exports the
pipeline and writes its card. To read it from the top, start at :mod:`paramerge.training.tiny.recipe`.
"""
