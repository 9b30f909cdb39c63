"""Post-training compression: any checkpoint into a file of a given size, without data."""

from jpq_jax.post_training.search import Progress as Progress
from jpq_jax.post_training.search import SizeRange as SizeRange
from jpq_jax.post_training.search import UnusedBudgetWarning as UnusedBudgetWarning
from jpq_jax.post_training.search import compress as compress
from jpq_jax.post_training.search import size_range as size_range

__all__ = ["Progress", "SizeRange", "UnusedBudgetWarning", "compress", "size_range"]
