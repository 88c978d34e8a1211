"Everything public, in one import: `from gmml_nb.all import *`. fastai's names come along, for metrics and callbacks."
from fastai.vision.all import *
from .data import *
from .corruption import *
from .vit import *
from .decoder import *
from .loss import *
from .pretrain import *
from .finetune import *
from .evaluate import *
from .baselines import *
from .ablations import *
from .paper import *
from .transfer import *
from .cli import *
from .benchmark import *
