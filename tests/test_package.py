"The wheel: built from the sources, installed alone, imported, and its metadata is that of settings.ini"
import json, os, shutil, subprocess, sys
import pytest
from common import ROOT, settings

PROBE = '''
import json, importlib.metadata as m, gmml_nb, gmml_nb.all
def loads(e):
    try: return callable(e.load())
    except (ImportError, AttributeError): return False
d = next(d for d in m.distributions(path=[TARGET]) if d.metadata["Name"] == "gmml_nb")
eps = [e for e in d.entry_points if e.group == "console_scripts"]
print(json.dumps(dict(file=gmml_nb.all.__file__, version=gmml_nb.__version__, requires=d.requires, python=d.metadata["Requires-Python"],
    license=d.metadata["License-Expression"], urls=d.metadata.get_all("Project-URL"), files=[str(f) for f in d.files],
    names=sorted(o for o in dir(gmml_nb.all)), scripts=sorted(f"{e.name}={e.value}" for e in eps), dead=[e.name for e in eps if not loads(e)])))
'''


def run(*cmd, **kwargs):
    r = subprocess.run([str(o) for o in cmd], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "The wheel, built from a copy of the sources without the network and installed into a folder"
    src, wheels, target = (tmp_path_factory.mktemp(o) for o in ('src', 'wheels', 'target'))
    for f in 'settings.ini setup.py pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE'.split(): shutil.copy(ROOT/f, src)
    shutil.copytree(ROOT/'gmml_nb', src/'gmml_nb', ignore=shutil.ignore_patterns('__pycache__'))
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    run(*pip, 'wheel', '--no-deps', '--no-index', '--no-build-isolation', '-w', wheels, src)
    wheel, = wheels.glob('*.whl')
    run(*pip, 'install', '--no-deps', '--no-index', '--target', target, wheel)
    return target


@pytest.fixture(scope='module')
def probe(installed, tmp_path_factory):
    "What a process finds that imports the installed wheel"
    out = run(sys.executable, '-W', 'ignore', '-c', PROBE.replace('TARGET', repr(str(installed))), cwd=tmp_path_factory.mktemp('cwd'),
              env={**os.environ, 'PYTHONPATH': str(installed), 'PYTHONDONTWRITEBYTECODE': '1'})
    return json.loads(out.splitlines()[-1])


def test_import_all_from_wheel(installed, probe):
    assert probe['file'].startswith(str(installed)), 'the wheel was not what was imported'
    assert {'gmml_learner', 'pretrain_dls', 'group_mask', 'GMMLEncoder', 'accuracy'} <= set(probe['names'])


def test_numbers_of_the_paper_are_in_the_wheel(probe): assert 'gmml_nb/paper.csv' in probe['files']


def test_version_is_stated_once(probe):
    assert probe['version'] == settings()['version']
    places = [f for f in [*ROOT.glob('*.toml'), *ROOT.glob('*.py'), *(ROOT/'gmml_nb').glob('*.py')] if f"'{probe['version']}'" in f.read_text()
              or f'"{probe["version"]}"' in f.read_text()]
    assert not places


def test_metadata_is_that_of_settings(probe):
    from packaging.requirements import Requirement
    cfg = settings()
    norm = lambda o: str(Requirement(o))
    have = [Requirement(o) for o in probe['requires']]
    main = sorted(str(r) for r in have if not r.marker or 'extra' not in str(r.marker))
    assert main == sorted(map(norm, cfg['requirements'].split()))
    assert {r.name for r in have if r.marker and 'extra' in str(r.marker)} == {Requirement(o).name for o in cfg['dev_requirements'].split()}
    assert probe['python'] == f">={cfg['min_python']}"
    assert probe['license'] == cfg['license'] and any(f.endswith('licenses/LICENSE') for f in probe['files'])
    assert all(o.split(', ')[1].startswith('https://') for o in probe['urls'])


def test_console_scripts(probe):
    assert probe['scripts'] == sorted(settings()['console_scripts'].split())
    assert len(probe['scripts']) == 5 and not probe['dead']
