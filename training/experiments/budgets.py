"""The three budgets."""

from __future__ import annotations

from paramerge.training.evaluation.drawing import Sampling
from paramerge.training.experiments.plan import Budget

__all__ = ["BUDGETS"]

BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            "smoke",
            subjects=2,
            tuning_subjects=0,
            prompts=1,
            para_stops=(1,),
            other_stops=(1,),
            ranks=(1, 2),
            gammas=(None, 0.05),
            gamma=None,
            count=3,
            edits=2,
            figures=2,
            runs=2,
            rate_factors=(1.0,),
            sampling=Sampling(steps=1, guidance=1.0, batch=4),
            notes=("every stage once: its pictures show nothing",),
        ),
        Budget(
            "small",
            subjects=8,
            tuning_subjects=1,
            prompts=2,
            para_stops=(75, 150),
            other_stops=(75, 150),
            ranks=(2, 8, 32),
            gammas=(None, 0.2, 0.05, 0.025),
            gamma=None,
            count=8,
            edits=8,
            figures=8,
            runs=2,
            sampling=Sampling(steps=12, guidance=1.0, batch=8),
            batch_size=4,
            rates=(
                ("para", 9e-3),
                ("lora", 6e-3),
                ("lora, scale 2.2", 1.5e-3),
                ("svdiff", 0.24),
                ("dreambooth", 8e-4),
                ("textual-inversion", 1.5e-2),
                ("oft", 5e-4),
                ("lokr", 2.5e-3),
                ("loha", 2e-2),
                ("krona", 1e-3),
            ),
            rate_factors=(1 / 4, 1 / 2, 1.0, 2.0),
            notes=(
                "for the shipped model on a CPU, not the paper's scale; batch size 4",
                "no guidance: adapters are trained with captions alone, and on so small a model guidance "
                "drives what they learnt past the subject's colours",
                "learning rates: of those that `paramerge experiment rates` compares on the subject for "
                "tuning the best by the mean of seeds 0 and 1, or the middle one of several that cannot be "
                "told from it; those of svdiff, loha and textual inversion are high because the model is "
                "small and the steps few",
                "the middle block of the shipped model does next to nothing: rows of ExCA-HL measure "
                "the base",
                "no rank boundary but where it is swept: at widths of 64 to 128 the paper's 1/40 would leave "
                "1 to 3 directions of a layer whatever the rank",
            ),
            seconds=(
                0.14,
                0.07,
                "measured on one CPU core, models of the shipped one's size; two cores: half",
            ),
        ),
        Budget(
            "paper",
            subjects=8,
            tuning_subjects=1,
            prompts=6,
            para_stops=(200,),
            other_stops=(200, 1000),
            ranks=(2, 4, 8, 16, 32),
            gammas=(None, 1 / 5, 1 / 10, 1 / 20, 1 / 40, 1 / 80),
            gamma=1 / 40,
            count=500,
            edits=100,
            figures=25,
            runs=5,
            sampling=Sampling(steps=50, guidance=7.5, batch=4),
            mixed_precision="bf16",
            notes=(
                "from the paper: SDXL 1.0, DDIM with eta 0, batch size 1, PaRa at 200 steps and the others "
                "at 1000, gamma 1/40, 8 subjects, 500 pictures for the tables and 100 for editing, 5 runs",
                "not in the paper, chosen here: 50 sampling steps, guidance 7.5, learning rates, bf16, that "
                "each of the 5 runs has all 500 pictures, and 25 pictures of a prompt for what figures show",
                "also at 200 steps for the others, which the paper does not show; the first subject "
                "(bear_plushie) chooses steps and rates and is in no verdict",
            ),
            # 5.8 minutes for 1000 steps of PaRa at r = 2 on an A100 are the paper's Table 5
            seconds=(0.35, 6.0, "0.35 s a step by the paper's Table 5 (A100); 6 s a picture is a guess"),
        ),
    )
}
"""The budgets by name."""
