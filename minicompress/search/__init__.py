"""Which method, where: plans for a whole network, and the search for the best one."""

from minicompress.search.plan import CompressedModel, compress
from minicompress.search.searching import MeasuredPlan, SearchResult, search_plan
from minicompress.search.weights import total, weights, with_weights

__all__ = [
    "CompressedModel",
    "MeasuredPlan",
    "SearchResult",
    "compress",
    "search_plan",
    "total",
    "weights",
    "with_weights",
]
