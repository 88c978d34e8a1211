"No thread pool of torch's is running when tests fork; fixtures of several tests"
import subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from xdist.scheduler import LoadScopeScheduling
from common import ROOT


def pytest_addoption(parser):
    for o in ('slow', 'cuda'): parser.addoption(f'--{o}', action='store_true', help=f'run cells marked `#| {o}` too')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With several workers, the tests of a file stay together, and those that need the docs site, too; each chapter is on its own"
    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = Path(nodeid.split('::')[0]).stem
            return nodeid if name == 'test_chapters' else 'site' if name in ('test_docs', 'test_site') else name
    return Together(config, log)


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


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "48 grey images in three class folders: bars, a different row for each class"
    d, rng = tmp_path_factory.mktemp('data')/'photos', np.random.default_rng(0)
    for i in range(48):
        x = rng.integers(0, 60, (8, 8)).astype(np.uint8)
        x[2*(i % 3) + 1] = 250
        (d/'abc'[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(d/'abc'[i % 3]/f'{i:02}.png')
    return d
