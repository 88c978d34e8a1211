"Fixtures of several tests"
import subprocess, sys
import pytest
from common import ROOT


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
