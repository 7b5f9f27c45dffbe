"""What a network costs: parameters, MACs and bytes; what each layer tolerates."""

from minicompress.analysis.accounting import LayerSummary, Summary, summary
from minicompress.analysis.array_sizes import ArrayRow, ArraySummary
from minicompress.analysis.sensitivities import Sensitivity, sensitivity

__all__ = [
    "ArrayRow",
    "ArraySummary",
    "LayerSummary",
    "Sensitivity",
    "Summary",
    "sensitivity",
    "summary",
]
