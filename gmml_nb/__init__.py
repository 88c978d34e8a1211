"Self-supervised pretraining of vision transformers by Group Masked Model Learning."
import warnings as _warnings
from importlib.metadata import version as _version, PackageNotFoundError as _NotInstalled

_warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)   # fastai.layers still calls it when it is imported

try: __version__ = _version('gmml_nb')
except _NotInstalled: __version__ = '0+source'   # imported from a source tree that was never installed
