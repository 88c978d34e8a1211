"What is published: an archive of the sources, the wheel built from that, installed alone, imported, and its metadata is that of settings.ini"
import json, os, re, shutil, subprocess, sys, tarfile
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
def archive(tmp_path_factory):
    "The archive of the sources, as `python -m build` makes it, without the network"
    src,out = (tmp_path_factory.mktemp(o) for o in ('src', 'dist'))
    for f in 'settings.ini setup.py pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE'.split(): shutil.copy(ROOT/f, src)
    for d in ('gmml_nb', 'tests'): shutil.copytree(ROOT/d, src/d, ignore=shutil.ignore_patterns('__pycache__'))
    run(sys.executable, '-c', f'from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})', cwd=src)
    return next(out.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def installed(archive, tmp_path_factory):
    "The wheel, built from the archive and installed into a folder"
    wheels,target = (tmp_path_factory.mktemp(o) for o in ('wheels', 'target'))
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    run(*pip, 'wheel', '--no-deps', '--no-index', '--no-build-isolation', '-w', wheels, archive)
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


def test_archive_holds_what_builds_the_package_and_no_more(archive):
    with tarfile.open(archive) as t: names = {m.name.split('/', 1)[1] for m in t.getmembers() if m.isfile()}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT/'gmml_nb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert archive.name == f"gmml_nb-{settings()['version']}.tar.gz"
    want = ours | set('settings.ini setup.py pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE PKG-INFO setup.cfg'.split())
    assert {o for o in names if not o.startswith('gmml_nb.egg-info/')} == want


def test_wheel_holds_the_package_alone(probe):
    assert {'gmml_nb/paper.csv', *(f'gmml_nb/{m}-cifar10/{o}' for m in ('gmml', 'mae') for o in ('config.json', 'model.safetensors', 'decoder.safetensors', 'README.md'))} <= set(probe['files'])
    assert {o.split('/')[0] for o in probe['files'] if not o.startswith(('../', 'bin/'))} == {'gmml_nb', f"gmml_nb-{settings()['version']}.dist-info"}
    assert {o for o in probe['files'] if o.endswith('.py')} == {f'gmml_nb/{p.name}' for p in (ROOT/'gmml_nb').glob('*.py')}


def test_page_of_the_package_leads_somewhere(installed):
    "PyPI shows the README far from the repository: links and pictures are whole addresses there"
    text = next(installed.glob('gmml_nb-*.dist-info/METADATA')).read_text(encoding='utf-8')
    assert '/raw/main/README_files/' in text and not re.search(r'\]\((?!https?:|#)', text)


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
    assert len(probe['scripts']) == 6 and not probe['dead']
