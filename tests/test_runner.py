"`make test` counts the tests that ran, and names those that their limit has stopped"
import subprocess, sys
from importlib.util import module_from_spec, spec_from_file_location
from common import ROOT

spec = spec_from_file_location('runner', ROOT/'tools/test.py')   # `test` is a module of Python's own
runner = module_from_spec(spec)
spec.loader.exec_module(runner)


def test_counts(tmp_path):
    (tmp_path/'test_some.py').write_text('import pytest, time\n'
        'def test_right(): pass\ndef test_wrong(): assert 0\ndef test_slow(): time.sleep(30)\n@pytest.mark.skip\ndef test_skipped(): pass\n'
        '@pytest.fixture\ndef broken(): 1/0\ndef test_error(broken): pass\n')
    subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', '--timeout=1', f'--junitxml={tmp_path}/r.xml', tmp_path],
                   cwd=tmp_path, stdout=subprocess.DEVNULL)
    passed,failed,stopped = runner.counts(tmp_path/'r.xml')
    assert (passed, failed) == (1, 3) and [o.split('::')[-1] for o in stopped] == ['test_slow']


def test_no_report(tmp_path): assert runner.counts(tmp_path/'none.xml') == (0, 0, [])
