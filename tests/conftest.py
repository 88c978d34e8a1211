"No thread pool of torch's is running when tests fork; fixtures of several tests"
import subprocess, sys
import pytest, torch
from common import ROOT


def pytest_addoption(parser):
    for o in ('slow', 'cuda'): parser.addoption(f'--{o}', action='store_true', help=f'run cells marked `#| {o}` too')


@pytest.hookimpl(wrapper=True)   # before xdist looks for groups, which is an early hook itself
def pytest_collection_modifyitems(items):
    "With several workers, the tests of a file stay together, and those that need the docs site, too; each chapter is on its own"
    for o in items:
        name = o.path.stem
        if name != 'test_chapters': o.add_marker(pytest.mark.xdist_group('site' if name in ('test_docs', 'test_site') else name))
    return (yield)


torch.set_num_threads(1)   # GNU's OpenMP hangs in a process that was forked after it had started threads


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
    "Tests write no cache files into the user's own folder"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('GMML_CACHE', str(tmp_path_factory.mktemp('gmml_cache')))
        yield


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "The docs site, built without Quarto: its folder, and what the build printed"
    out = tmp_path_factory.mktemp('docs')/'site'
    r = subprocess.run([sys.executable, '-W', 'default', str(ROOT/'tools/docs.py'), '--engine', 'smalldocs', '--out', str(out)], cwd=ROOT,
                       capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert r.returncode == 0, r.stdout + r.stderr
    return out, r.stdout + r.stderr
