"Self-supervised pretraining of vision transformers by Group Masked Model Learning."
from importlib.metadata import version as _version, PackageNotFoundError as _NotInstalled

try: __version__ = _version('gmml_nb')
except _NotInstalled: __version__ = '0+source'   # imported from a source tree that was never installed
