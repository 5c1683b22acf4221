"""A study whose law is known, of runs that nobody trained."""

import math

import numpy as np

from chinchilla_hf.scaling.laws import ParametricLaw
from chinchilla_hf.scaling.shapes import LADDER, training_settings
from chinchilla_hf.scaling.study import StudyRun

# About what small models on small texts do.
LAW = ParametricLaw(1.6, 400.0, 0.4, 60.0, 0.25)
BUDGETS = (1e12, 3e12, 1e13, 3e13, 1e14)


def planted_study(
    law=LAW, noise=0.003, seed=0, objective="masked", budgets=BUDGETS, sizes=6, vocab_size=500, **changes
) -> list[StudyRun]:
    """Of every budget, `sizes` shapes around the best one; two seeds of the best."""
    rng = np.random.default_rng(seed)
    runs = []
    for budget in budgets:
        candidates = []
        for shape in LADDER:
            per_token = shape.flops_per_token(objective, vocab_size, 128)
            counts = shape.parameters(objective, vocab_size)
            tokens = budget / per_token
            settings = training_settings(shape, tokens, 128)
            run = StudyRun(
                **{
                    "objective": objective,
                    "tokenizer": "aa",
                    "data": "bb",
                    "row_length": 128,
                    "vocab_size": vocab_size,
                    "budget": budget,
                    "seed": 1,
                    **vars(shape),
                    "parameters": counts.total,
                    "parameters_without_embeddings": counts.without_embeddings,
                    "parameters_with_head": counts.with_head,
                    "learning_rate": settings.learning_rate,
                    "rows": settings.rows,
                    "steps": max(1, round(tokens / settings.rows / 128)),
                    "tokens": round(tokens),
                    "unique_tokens": 10**12,
                    "characters_per_token": 4.0,
                    "flops": budget,
                    "paper_flops": 2 * budget,
                    "loss": law.loss(counts.with_head, tokens) * math.exp(rng.normal(0, noise)),
                    "accuracy": 0.3,
                    "seconds": budget / 1e11,
                    **changes,
                }
            )
            candidates.append((law.loss(counts.with_head, tokens), run))
        best = min(range(len(candidates)), key=lambda i: candidates[i][0])
        begin = max(0, best - sizes // 2)
        chosen = [run for _, run in candidates[begin : begin + sizes]]
        again = candidates[best][1]
        loss = candidates[best][0] * math.exp(rng.normal(0, noise))
        runs += [*chosen, StudyRun(**{**vars(again), "seed": 2, "loss": loss})]
    return runs
