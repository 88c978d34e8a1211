"The explorer in a browser: JupyterLab opens its chapter in headless Chromium, a slider moves, the picture follows"
import json, os, re, shutil, socket, subprocess, sys, time
from urllib.request import urlopen
import pytest
from common import ROOT

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium: apt-get install chromium')
START = 40   # seconds for a server to answer


@pytest.fixture
def lab(tmp_path):
    "The address of a JupyterLab on a copy of the chapter, its outputs removed; it ends with the test"
    nb = json.loads((ROOT/'nbs/90_explore.ipynb').read_text())
    for c in nb['cells']:
        if c['cell_type'] == 'code': c['outputs'] = []
    (tmp_path/'nbs').mkdir()
    (tmp_path/'nbs/90_explore.ipynb').write_text(json.dumps(nb))
    shutil.copytree(ROOT/'results', tmp_path/'results')
    (tmp_path/'config/labconfig').mkdir(parents=True)   # cells that are out of sight are on the page too; no question about news
    (tmp_path/'config/labconfig/default_setting_overrides.json').write_text(json.dumps({
        '@jupyterlab/notebook-extension:tracker': {'windowingMode': 'none'}, '@jupyterlab/apputils-extension:notification': {'fetchNews': 'false'}}))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    home = {f'JUPYTER_{k}_DIR': str(tmp_path/k.lower()) for k in ('CONFIG', 'RUNTIME', 'DATA')}
    env = {**os.environ, **home, 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))}
    args = ['--no-browser', f'--port={port}', '--ip=127.0.0.1', '--IdentityProvider.token=', '--ServerApp.password=', '--allow-root',
            f'--ServerApp.root_dir={tmp_path/"nbs"}', '--ServerApp.port_retries=0', '--LabApp.collaborative=False']
    with open(tmp_path/'lab.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *args], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=tmp_path)
        try:
            for _ in range(4*START):
                if server.poll() is not None: break
                try: urlopen(f'http://127.0.0.1:{port}/api', timeout=2); break
                except OSError: time.sleep(.25)
            else: pytest.fail((tmp_path/'lab.log').read_text())
            assert server.poll() is None, (tmp_path/'lab.log').read_text()
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()
            try: server.wait(15)
            except subprocess.TimeoutExpired: server.kill()


@pytest.fixture
def page():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield browser.new_page(viewport=dict(width=1400, height=1000))
        browser.close()


def pixels(img):
    "What a picture on the page shows, as text"
    return img.evaluate('''async o => {
        await o.decode()
        const c = document.createElement('canvas')
        c.width = o.naturalWidth, c.height = o.naturalHeight
        c.getContext('2d').drawImage(o, 0, 0)
        return c.toDataURL() }''')


def test_the_picture_follows_the_slider(lab, page):
    page.goto(f'{lab}/lab/tree/90_explore.ipynb?reset')
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for(timeout=60_000)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    amount = page.locator('.widget-slider', has_text='amount').first
    amount.wait_for(timeout=90_000)
    widget = page.locator('.jp-OutputArea-output', has=page.locator('.widget-slider')).first
    clean,bad = widget.locator('img').nth(0),widget.locator('img').nth(1)
    before = pixels(clean),pixels(bad)
    assert before[0] != before[1] and widget.get_by_text('50% corrupted').count()
    handle = amount.locator('.noUi-handle')
    handle.focus()
    for _ in range(6): handle.press('ArrowRight')
    widget.get_by_text(re.compile(r'^8\d% corrupted')).wait_for(timeout=20_000)
    for _ in range(50):
        if pixels(bad) != before[1]: break
        page.wait_for_timeout(100)
    assert pixels(clean) == before[0] and pixels(bad) != before[1]
    assert not page.locator('[data-mime-type="application/vnd.jupyter.error"]').count()
