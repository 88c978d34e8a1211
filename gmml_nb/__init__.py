"""Self-supervised pretraining of vision transformers by Group Masked Model Learning (GMML): for people with some thousand images of their own and labels for few of them, and for those who read or reproduce the paper.

A vision transformer learns little from a few hundred labelled images. GMML lets it learn
from images alone first: hide groups of neighbouring patches under noise, or under patches of another image, and train it to
restore what was there. The transformer is kept, and fine-tuned on the labels there are.

Modules:

- `gmml_nb.cli`: Pretrain, fine-tune and compare without writing Python
- `gmml_nb.convert`: Weights in the format of the authors, of timm, of DINO and of our own runs become folders that timm loads, every entry accounted for
- `gmml_nb.corruption`: Groups of connected tokens, and what is put in their place
- `gmml_nb.experiment`: A run as a value, its name, its line in a file of results, and what several lines say together
- `gmml_nb.finetune`: From a pretrained encoder to a classifier, with the recipe of DeiT, or one for few labels
- `gmml_nb.keep`: While a classifier is fine-tuned on few labels, it goes on restoring images that have none
- `gmml_nb.pretrain`: The GMML callback, and a fastai `Learner` that restores corrupted images
- `gmml_nb.recipe`: Every choice of a run as a value, and what it names: corruption, augmentation, decoder, loss
- `gmml_nb.sources`: What you hold in your hands, read by place: which image has which label, what a label is, what a split is called
- `gmml_nb.vit`: Any plain vision transformer of timm, with the features of several blocks fused into one map"""

import warnings as _warnings
from importlib.metadata import version as _version, PackageNotFoundError as _NotInstalled

_warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)   # fastai.layers still calls it when it is imported

try: __version__ = _version('gmml_nb')
except _NotInstalled: __version__ = '0+source'   # imported from a source tree that was never installed
