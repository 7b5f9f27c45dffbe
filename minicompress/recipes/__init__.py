"""Steps of compression and training: Deep Compression, and training for the fewest bytes."""

from minicompress.recipes.deep_compression import deep_compression
from minicompress.recipes.latent import latent_model, quantized_model
from minicompress.recipes.rate import rate_view
from minicompress.recipes.recipe import RecipeResult, Step, StepRow, array_digest, run_recipe
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
