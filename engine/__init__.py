"""What training is: recipes, models, methods, the step, the loop, checkpoints, evaluation, the command line."""

from . import recipes
from .errors import CheckpointError, EvaluationError, UsageError
from .evaluation import evaluate, evaluate_net
from .foreign import load_weights
from .recipes.recipe import Recipe
from .run_folder import load_model
from .trainer import Outcome, train

__all__ = [
    "CheckpointError",
    "EvaluationError",
    "Outcome",
    "Recipe",
    "UsageError",
    "evaluate",
    "evaluate_net",
    "load_model",
    "load_weights",
    "recipes",
    "train",
]
