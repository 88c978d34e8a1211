"What `from gmml_nb.all import *` brings: the public API, each name documented, and nothing else"
import inspect, json
import fastai.vision.all as fastai_names
import gmml_nb.all as everything
from common import ROOT
from gmml_nb._docstrings import with_docstrings

PUBLIC = (ROOT/'tests/data/public_names.txt').read_text().split()


def ours(): return {k for k,v in vars(everything).items() if not k.startswith('_') and getattr(fastai_names, k, None) is not v}


def test_public_names():
    assert sorted(ours()) == sorted(PUBLIC), 'a name came or went: change gmml_nb/all.py, tests/data/public_names.txt and CHANGELOG.md together'


def test_fastai_names_are_left_alone(): assert not {k for k in ours() if hasattr(fastai_names, k)}


def test_every_public_name_is_documented():
    bare = [k for k in PUBLIC if callable(o := getattr(everything, k)) and not (inspect.getdoc(o) or '').strip()]
    assert not bare


def test_help_lists_parameters_and_fields():
    doc = everything.gmml_learner.__doc__
    assert 'arch (str, default' in doc and '    max_side (float, default 0.3): longest side of a group' in doc and 'Returns (Learner): ' in doc
    assert '    smoothing (float, default 0.1): ' in everything.finetune_learner.__doc__
    thin = [k for k in PUBLIC if inspect.isfunction(o := getattr(everything, k)) and o.__module__.startswith('gmml_nb') and len(inspect.signature(o).parameters) > 1
            and 'Returns' not in (o.__doc__ or '') and ': ' not in (o.__doc__ or '')]
    assert not thin, f'comment the parameters of {thin}'


def test_docstrings_on_export():
    src = 'def f(\n    a:int=3, # Number\n             # of things\n    b=None, # Letter\n    **kw,   # Fields of `Tea`\n) -> int: # The sum\n    "One line"\n    return 1\n'
    new = with_docstrings(src, {'Tea': ['milk (bool, default False): In it?']})
    space = {}
    exec(new, space)
    assert space['f'].__doc__.splitlines()[2:] == ['    a (int, default 3): Number of things', '    b (default None): Letter', '    **kw: Fields of `Tea`',
                                                  '        milk (bool, default False): In it?', '    Returns (int): The sum', '    ']
    assert with_docstrings('def _f(a): # x\n    "y"\n', {}) == 'def _f(a): # x\n    "y"\n'
