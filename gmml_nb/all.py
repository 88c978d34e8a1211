"""The public API, in one import: `from gmml_nb.all import *`. fastai's names come along, for metrics and callbacks.

What stands here is what users get; everything else of a chapter is imported by its module's name."""
from fastai.vision.all import *
from .files import image_files
from .images import Unreadable, read_image
from .datasets import DATASETS, DatasetSpec, Labelled, get_dataset
from .augment import AUGMENTS
from .data import ImageLoaders, finetune_dls, pretrain_dls
from .corruption import Combine, NoCorruption, Noise, Replace, Zeros, group_mask
from .vit import GMMLEncoder, upper_blocks
from .decoder import GMMLAutoencoder, PointwiseDecoder
from .loss import MaskedL1Loss, MaskedMSELoss
from .checkpoint import Checkpoint
from .vit import read_config
from .weights import example_encoder, load_encoder
from .core import pick_device
from .recipe import RECIPES, Recipe, get_recipe
from .training import ClipEach, LogEvery, SkipValidation, all_processes
from .pretrain import GMML, gmml_learner, method_learner
from .finetune import FINETUNE_RECIPES, FinetuneRecipe, finetune_learner
from .evaluate import copy_accuracy, feature_rank, features, interval, knn_accuracy, linear_probe
from .progress import TrackFeatures, history, long_enough, plot_progress
from .baselines import MAE, METHODS, SimMIM, autoencoder_learner, mae_learner, simmim_learner
from .experiment import METHOD_NAMES, Experiment, difference, read_results, summary, verdict
from .ablations import BASES, SWEEPS, Sweep, plot_sweep
from .paper import claim, claims, paper_numbers, paper_table
from .transfer import plot_transfer, transfer, transfer_matrix
from .visualise import ShowReconstructions, compare, show_attention, show_blocks, show_patch_colours, show_token_attention
from .explore import Explore, Results
from .export import export_onnx, export_program, push_to_hub, write_card
from .convert import convert_checkpoint
from .benchmark import benchmark, plot_growth
from .cli import gmml_bench, gmml_finetune, gmml_pretrain, gmml_sweep
from .demo import gmml_demo, gmml_worth
from .worth import worth_it
