"Every tutorial, from top to bottom in a new kernel, as a reader in Jupyter runs it"
from concurrent.futures import ThreadPoolExecutor
import nbformat, pytest
from common import NAMES, ROOT
from nbclient import NotebookClient

PAGES = [n for n in NAMES if n.startswith('tutorials/')]


def run(name):
    "The error that stopped the notebook, or None"
    path = ROOT/'nbs'/name
    nb = nbformat.read(path, 4)
    try: NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=path.parent))).execute()
    except Exception as e: return e


@pytest.fixture(scope='module')
def errors():
    with ThreadPoolExecutor(2) as ex: return dict(zip(PAGES, ex.map(run, PAGES)))


def test_there_are_pages(): assert len(PAGES) >= 2

@pytest.mark.parametrize('name', PAGES)
def test_page(errors, name):
    if errors[name]: raise errors[name]
