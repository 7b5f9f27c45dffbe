"""Steps of compression and training: Deep Compression, and training for the fewest bytes."""

from minicompress.recipes.rate import latent_model, quantized_model, rate_view
from minicompress.recipes.recipe import (
    RecipeResult,
    Step,
    StepRow,
    array_digest,
    deep_compression,
    run_recipe,
)

__all__ = [
    "RecipeResult",
    "Step",
    "StepRow",
    "array_digest",
    "deep_compression",
    "latent_model",
    "quantized_model",
    "rate_view",
    "run_recipe",
]
