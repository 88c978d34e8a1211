"Tests write no cache files into the user's own folder"
import pytest


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('GMML_CACHE', str(tmp_path_factory.mktemp('gmml_cache')))
        yield
