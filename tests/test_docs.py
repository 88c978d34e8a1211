"The docs site, built without Quarto: every page of the sidebar, every link alive, no cell error"
import importlib, re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest, yaml
from common import NAMES, ROOT
from nbdev.config import nbpath2html

pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11')


class Page(HTMLParser):
    "Links, pictures and ids of a page"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.alts = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get('id'), attrs.get('name')} - {None}
        if tag in ('a', 'link') and attrs.get('href'): self.links.append(attrs['href'])
        if tag == 'img': self.alts.append(attrs.get('alt') or '')
        if tag in ('img', 'script') and attrs.get('src'): self.images.append(attrs['src'])


@pytest.fixture(scope='module')
def pages(built): return {p: Page(p.read_text(encoding='utf-8')) for p in built[0].rglob('*.html')}


def sidebar():
    "Notebooks in the sidebar of _quarto.yml, in order"
    found = []
    def walk(o):
        if isinstance(o, list): [walk(i) for i in o]
        elif isinstance(o, dict): [found.append(v) if k == 'href' else walk(v) for k,v in o.items()]
        elif isinstance(o, str) and o.endswith(('.ipynb', '.qmd')): found.append(o)
    walk(yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents'])
    return found


def test_sidebar_has_every_notebook_once(): assert sorted(o for o in sidebar() if o != 'reference.qmd') == sorted(NAMES)


def test_link_to_the_settings():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink() and link.readlink() == Path('../_quarto.yml')


def test_every_page_of_the_sidebar(built):
    missing = [n for n in sidebar() if not (built[0]/nbpath2html(n)).exists()]
    assert not missing


def test_sidebar_is_on_the_pages(built, pages):
    home = [(built[0]/unquote(urlsplit(o).path)).resolve() for o in pages[built[0]/'index.html'].links]
    assert all(built[0]/nbpath2html(n) in home for n in sidebar())


def test_links_are_alive(built, pages):
    dead, ours = [], 'https://gmml-nb.github.io/gmml_nb/'
    for p,page in pages.items():
        for link in page.links + page.images:
            o = urlsplit(link)
            if o.scheme and not link.startswith(ours) or o.netloc and not link.startswith(ours): continue
            to = built[0]/unquote(link[len(ours):].split('#')[0]) if link.startswith(ours) else p.parent/unquote(o.path) if o.path else p
            to = to.resolve()
            if to.is_dir(): to = to/'index.html'
            where = f'{p.relative_to(built[0])}: {link}'
            if not to.exists(): dead.append(where)
            elif o.fragment and to in pages and unquote(o.fragment) not in pages[to].ids: dead.append(where)
    assert not dead, '\n'.join(sorted(set(dead)))


def test_no_error_on_a_page(built):
    bad = [p.name for p in built[0].rglob('*.html') for o in ('cell-output-error', 'Traceback (most recent call last)') if o in p.read_text()]
    assert not bad


def test_imports_have_cells_of_their_own(built): assert 'cells containing imports and other code' not in built[1]


def test_exported_names_are_documented(pages):
    by_name = {p.name: page for p,page in pages.items()}
    from gmml_nb._modidx import d
    for mod,syms in d['syms'].items():
        page = by_name[f"{mod.split('.')[-1]}.html"]
        public = importlib.import_module(mod).__all__
        top = [n.lower() for s in syms if (n := s.removeprefix(f'{mod}.')) in public]
        assert not [n for n in top if n not in page.ids], mod


def test_pictures_have_alternative_text(built, pages):
    assert not [f'{p.relative_to(built[0])}: {o!r}' for p,page in pages.items() for o in page.alts if len(o) < 10 or '`' in o]


def test_reference_has_every_public_name(built, pages):
    page,d,public = pages[built[0]/'reference.html'],importlib.import_module('gmml_nb._modidx').d,importlib.import_module('gmml_nb.all')
    for mod in d['syms']:
        short = mod.split('.')[-1]
        here = {o for o in page.links if o.lstrip('./').startswith(f'{short}.html')}
        for n in importlib.import_module(mod).__all__:
            if not hasattr(public, n): continue
            link = d['syms'][mod].get(f'{mod}.{n}', [f'{short}.html'])[0]
            assert {link, f'./{link}'} & here, f'{mod}.{n}'


def test_names_in_the_text_lead_to_where_they_are_explained(built, pages):
    links = lambda page: {o.removeprefix('../').removeprefix('./') for o in pages[built[0]/page].links}
    assert 'corruption.html#group_mask' in links('corruption.html') and 'pretrain.html#gmml_learner' in links('explanations/four_methods.html')


def test_every_page_is_there_as_text(built):
    "What llms.txt and the docstrings of modules lead to: PAGE.html.md, without pictures and marks, and its links lead to others of the kind"
    site = 'https://gmml-nb.github.io/gmml_nb/'
    named = [o for p in [built[0]/'llms.txt', *(ROOT/'gmml_nb').glob('*.py')] for o in re.findall(rf'{site}([\w./]+\.md)', p.read_text(encoding='utf-8'))]
    assert len(set(named)) > 30 and not [o for o in named if not (built[0]/o).exists()]
    texts = {built[0]/f'{nbpath2html(n)}.md' for n in NAMES}
    for p in texts:
        t = p.read_text(encoding='utf-8')
        assert t.startswith('# ') and not re.search(r'^#\||base64,\w{99}|\.ipynb[)#]', t, flags=re.M), p
        assert not [o for o in re.findall(r'\]\((?!https?:)([^)#\s"]+\.md)', t) if (p.parent/o).resolve() not in texts], p
