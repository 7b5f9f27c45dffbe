"""What a network costs: parameters, MACs and bytes; what each layer tolerates."""

from minicompress.analysis.accounting import LayerSummary, Summary, summary
from minicompress.analysis.sensitivities import Sensitivity, sensitivity

__all__ = [
    "LayerSummary",
    "Sensitivity",
    "Summary",
    "sensitivity",
    "summary",
]
