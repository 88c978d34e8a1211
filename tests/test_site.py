"The docs site in a browser, on a wide and on a narrow screen"
import shutil, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urldefrag
import pytest

pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11')
playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if not CHROMIUM: pytest.skip('no Chromium found: apt-get install chromium', allow_module_level=True)

FACTS = """() => ({
    ids: [...document.querySelectorAll('[id]')].map(o => o.id),
    links: [...document.querySelectorAll('a[href]')].map(o => o.href),
    broken: [...document.images].filter(o => !(o.complete && o.naturalWidth)).map(o => o.src.slice(0, 80)),
    over: document.documentElement.scrollWidth - innerWidth})"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def address(built):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(built[0])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield b
        b.close()


@pytest.fixture(scope='module', params=[1280, 390])
def tab(request, browser, address):
    "A tab of this width, which loads nothing from elsewhere: fonts and KaTeX are not ours to test"
    tab = browser.new_page(viewport=dict(width=request.param, height=900))
    tab.route(lambda url: not url.startswith(address), lambda route: route.abort())
    yield tab
    tab.close()


@pytest.fixture(scope='module')
def visited(tab, built, address):
    "What the browser finds on each page, by address"
    found,errors = {},[]
    tab.on('pageerror', lambda e: errors.append(str(e)))
    tab.on('console', lambda m: errors.append(m.text) if m.type == 'error' and m.location['url'].startswith(address) else None)
    for p in sorted(built[0].rglob('*.html')):
        errors.clear()
        url = address + p.relative_to(built[0]).as_posix()
        tab.goto(url)
        found[url] = {**tab.evaluate(FACTS), 'errors': list(errors)}
    return found


def wrong(visited, what): return {url: o[what] for url,o in visited.items() if o[what]}

def test_no_console_error(visited): assert not wrong(visited, 'errors')

def test_every_picture_is_loaded(visited): assert not wrong(visited, 'broken')

def test_no_page_is_wider_than_the_screen(visited): assert not {url: o['over'] for url,o in visited.items() if o['over'] > 0}

def test_internal_links_are_alive(visited, address):
    dead = set()
    for url,o in visited.items():
        for link in o['links']:
            to,part = urldefrag(link)
            if not to.startswith(address): continue
            if to == address: to += 'index.html'
            if to not in visited or part and unquote(part) not in visited[to]['ids']: dead.add((url, link))
    assert not dead


def test_search_finds_group_mask(tab, address):
    tab.goto(address)
    if not tab.locator('.smalldocs-search input:visible').count(): tab.locator('.navbar-toggler').first.click()
    box = tab.locator('.smalldocs-search input:visible').first
    box.wait_for(timeout=5000)
    box.fill('group_mask')
    hit = tab.locator('.search-result[href*="corruption.html"]', has_text='group_mask').first
    hit.wait_for(timeout=5000)
    hit.click()
    tab.wait_for_url('**/corruption.html*')
    assert tab.locator('#group_mask').count() == 1


def test_dark_mode(browser, address):
    tab = browser.new_page(color_scheme='dark')
    tab.route(lambda url: not url.startswith(address), lambda route: route.abort())
    tab.goto(address)
    shade = lambda: sum(map(int, tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)")))
    dark = shade()
    tab.locator('.quarto-color-scheme-toggle:visible').first.click()
    tab.wait_for_function(f"getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) > {dark}")
    assert dark < 200 and shade() > 600
    tab.close()
