"""Self-supervised pretraining of vision transformers by Group Masked Model Learning (GMML): for people with some thousand images of their own and labels for few of them, and for those who read or reproduce the paper.

A vision transformer learns little from a few hundred labelled images. GMML lets it learn
from images alone first: hide groups of neighbouring patches under noise, or under patches of another image, and train it to
restore what was there. The transformer is kept, and fine-tuned on the labels there are."""

import warnings as _warnings
from importlib.metadata import version as _version, PackageNotFoundError as _NotInstalled

_warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)   # fastai.layers still calls it when it is imported

try: __version__ = _version('gmml_nb')
except _NotInstalled: __version__ = '0+source'   # imported from a source tree that was never installed
