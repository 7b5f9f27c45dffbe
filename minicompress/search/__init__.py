"""Which method, where: plans for a whole network, and the search for the best one."""

from minicompress.search.methods import factor_in_two, parse_method, quantize_best_axis
from minicompress.search.plan import CompressedModel, compress
from minicompress.search.searching import MeasuredPlan, SearchResult, search_plan
from minicompress.search.weights import total, weights, with_weights

__all__ = [
    "CompressedModel",
    "MeasuredPlan",
    "SearchResult",
    "compress",
    "factor_in_two",
    "parse_method",
    "quantize_best_axis",
    "search_plan",
    "total",
    "weights",
    "with_weights",
]
