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
from minicompress.recipes.structure import preserve_structure, restore_structure

__all__ = [
    "RecipeResult",
    "Step",
    "StepRow",
    "array_digest",
    "deep_compression",
    "latent_model",
    "preserve_structure",
    "quantized_model",
    "rate_view",
    "restore_structure",
    "run_recipe",
]
