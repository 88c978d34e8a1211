"Tests write no cache files into the user's own folder, and may fork: no thread pool of torch's is running when they do"
import pytest, torch

torch.set_num_threads(1)   # GNU's OpenMP hangs in a process that was forked after it had started threads



@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('GMML_CACHE', str(tmp_path_factory.mktemp('gmml_cache')))
        yield
