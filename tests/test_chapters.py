"Every chapter and every page, from top to bottom, as `nbdev-test` runs it: each in a copy of this process, which has imported torch and fastai already"
import os
import pytest
from common import NOTEBOOKS, ROOT, child, code
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

CHAPTERS = [p for p in NOTEBOOKS if p.parent.name != 'tutorials']   # test_fresh_kernel.py runs those


@pytest.fixture(scope='module', autouse=True)
def imports():
    "What chapters import, once"
    import gmml_nb.all   # noqa: F401


@pytest.mark.parametrize('path', CHAPTERS, ids=[p.name for p in CHAPTERS])
def test_chapter(path, request):
    cfg = get_config(ROOT)
    flags = [o for o in ('slow', 'cuda') if request.config.getoption(f'--{o}')]
    def run():
        ok,_ = run_notebook(path, skip_flags=cfg.tst_flags, force_flags=flags, basepath=ROOT, cell_timeout=cfg.cell_timeout)
        if not ok: os._exit(1)
    assert code(child(run)) == 0, f'{path.name}: its error stands above'
