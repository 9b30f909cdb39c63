"""Prunes and quantizes a JAX model together, under one budget, inside the optimizer.

params --sketch--> distortion tables --allocate--> bits, support --project--> Codes --save--> file
"""

from importlib.metadata import PackageNotFoundError, version

from jpq_jax import artifact as artifact
from jpq_jax import recipe as recipe
from jpq_jax.checkpoint import read_checkpoint as read_checkpoint
from jpq_jax.checkpoint import write_safetensors as write_safetensors
from jpq_jax.finalize import finalize as finalize
from jpq_jax.fisher import diagonal_fisher as diagonal_fisher
from jpq_jax.granularity import Block as Block
from jpq_jax.granularity import Channels as Channels
from jpq_jax.granularity import Element as Element
from jpq_jax.granularity import NofM as NofM
from jpq_jax.plan import plan_leaves as plan_leaves
from jpq_jax.policy.find import Policy as Policy
from jpq_jax.policy.find import find_policy as find_policy
from jpq_jax.post_training import SizeRange as SizeRange
from jpq_jax.post_training import UnusedBudgetWarning as UnusedBudgetWarning
from jpq_jax.post_training import compress as compress
from jpq_jax.post_training import size_range as size_range
from jpq_jax.projection.channelwise import channelwise as channelwise
from jpq_jax.projection.clustering import clustering as clustering
from jpq_jax.projection.joint import JointPlan as JointPlan
from jpq_jax.projection.joint import joint as joint
from jpq_jax.projection.planner import Planner as Planner
from jpq_jax.projection.project import project as project
from jpq_jax.projection.pruning import pruning as pruning
from jpq_jax.projection.published import project_alternating as project_alternating
from jpq_jax.rate import account as account
from jpq_jax.rate import paper_ratio as paper_ratio
from jpq_jax.rate import rate_bits as rate_bits
from jpq_jax.removal.shrink import Shortened as Shortened
from jpq_jax.removal.shrink import Shrunk as Shrunk
from jpq_jax.removal.shrink import shrink as shrink
from jpq_jax.report import compare as compare
from jpq_jax.report import inspect as inspect
from jpq_jax.transforms.admm import AdmmState as AdmmState
from jpq_jax.transforms.admm import admm as admm
from jpq_jax.transforms.clustering import ClusterState as ClusterState
from jpq_jax.transforms.clustering import cluster_updates as cluster_updates
from jpq_jax.transforms.freezing import FreezeState as FreezeState
from jpq_jax.transforms.freezing import freeze_shares as freeze_shares
from jpq_jax.transforms.latent import LatentState as LatentState
from jpq_jax.transforms.latent import latent as latent
from jpq_jax.transforms.masking import mask_updates as mask_updates
from jpq_jax.transforms.projecting import ProjectState as ProjectState
from jpq_jax.transforms.projecting import project_params as project_params
from jpq_jax.transforms.splitting import Residuals as Residuals
from jpq_jax.transforms.splitting import SplitState as SplitState
from jpq_jax.transforms.splitting import admm_to as admm_to
from jpq_jax.transforms.splitting import has_converged as has_converged
from jpq_jax.vocabulary import Budget as Budget
from jpq_jax.vocabulary import Codes as Codes
from jpq_jax.vocabulary import InfeasibleError as InfeasibleError
from jpq_jax.vocabulary import LeafPlan as LeafPlan
from jpq_jax.vocabulary import Treatment as Treatment
from jpq_jax.vocabulary import dequantize as dequantize
from jpq_jax.vocabulary import leaves_with_paths as leaves_with_paths
from jpq_jax.vocabulary import validate as validate

try:
    __version__ = version("jpq_jax")
except PackageNotFoundError:  # a checkout on the path
    __version__ = "0+unknown"

__all__ = [
    "AdmmState",
    "Block",
    "Budget",
    "Channels",
    "ClusterState",
    "Codes",
    "Element",
    "FreezeState",
    "InfeasibleError",
    "JointPlan",
    "LatentState",
    "LeafPlan",
    "NofM",
    "Planner",
    "Policy",
    "ProjectState",
    "Residuals",
    "Shortened",
    "Shrunk",
    "SizeRange",
    "SplitState",
    "Treatment",
    "UnusedBudgetWarning",
    "__version__",
    "account",
    "admm",
    "admm_to",
    "artifact",
    "channelwise",
    "cluster_updates",
    "clustering",
    "compare",
    "compress",
    "dequantize",
    "diagonal_fisher",
    "finalize",
    "find_policy",
    "freeze_shares",
    "has_converged",
    "inspect",
    "joint",
    "latent",
    "leaves_with_paths",
    "mask_updates",
    "paper_ratio",
    "plan_leaves",
    "project",
    "project_alternating",
    "project_params",
    "pruning",
    "rate_bits",
    "read_checkpoint",
    "recipe",
    "shrink",
    "size_range",
    "validate",
    "write_safetensors",
]
