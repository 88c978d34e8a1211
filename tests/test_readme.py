"README.md is what `make readme` writes from nbs/index.ipynb"
import re, shlex
from common import ROOT
import readme


def test_readme_is_the_notebook():
    differ = readme.differences(*readme.render())
    assert not differ, f'{differ} differ from nbs/index.ipynb: run `make readme` and commit'


def test_a_changed_readme_is_noticed(tmp_path):
    text, pictures = readme.render()
    (tmp_path/'README.md').write_text(text + 'by hand\n')
    assert 'README.md' in readme.differences(text, pictures, tmp_path)
    (tmp_path/'README.md').write_text(text)
    (tmp_path/'README_files').mkdir()
    for n,b in pictures.items(): (tmp_path/n).write_bytes(b)
    assert readme.differences(text, pictures, tmp_path) == []
    (tmp_path/'README_files/stale.png').write_bytes(b'')
    assert readme.differences(text, pictures, tmp_path) == ['README_files/stale.png']


def test_pip_first_clone_and_make_second():
    text = (ROOT/'README.md').read_text()
    places = [text.index(o) for o in ('pip install gmml_nb', 'gmml_worth FOLDER', 'git clone', 'make demo', 'make test')]
    assert places == sorted(places) and len(text.splitlines()) < 160


def test_no_html_tables_and_no_directives():
    text = (ROOT/'README.md').read_text()
    assert '<table' not in text and not re.search(r'^#\|', text, flags=re.M)


def test_links_and_pictures_exist():
    text = (ROOT/'README.md').read_text()
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    missing = [o for o in links if not re.match(r'https?:|#|data:', o) and not (ROOT/o.split('#')[0]).exists()]
    assert not missing


def test_directives_hide_what_they_say():
    from nbformat.v4 import new_code_cell, new_output
    out = [new_output('stream', text='shown\n')]
    assert readme.shown(new_code_cell('#| hide\n1', outputs=out)) is None
    assert readme.shown(new_code_cell('#| default_exp data')) is None
    assert readme.shown(new_code_cell('#| include: false\n1', outputs=out)) is None
    cell = readme.shown(new_code_cell('#| eval: false\nf(1)'))
    assert cell.source == 'f(1)'
    cell = readme.shown(new_code_cell('#| echo: false\nf(1)', outputs=out))
    assert cell.metadata.transient.remove_source and cell.outputs


def test_settings_without_a_gpu_are_those_of_the_demo():
    from gmml_nb.command import parse_fields
    from gmml_nb.worth import WORTH
    text,d = (ROOT/'README.md').read_text().replace('\\\n', ' '),dict(WORTH['photos'])
    words = shlex.split(re.search(r'^gmml_pretrain FOLDER (.*)$', text, flags=re.M)[1])
    said,new = {k[2:].replace('-', '_'): v for k,v in zip(words[::2], words[1::2])},d.pop('change')
    assert dict(parse_fields(said.pop('change')), lr=float(said.pop('lr'))) == dict(new, pos_init='sincos')
    d |= d.pop('model_args')
    assert said == {k: str(d[k]) for k in said} and len(said) == 6


def test_rates_of_the_recipes_are_theirs():
    from gmml_nb.recipe import RECIPES
    rates = dict(re.findall(r"^\|.*\b(paper|official)['`].*\| (\S+) \|$", (ROOT/'README.md').read_text(), flags=re.M))
    assert {k: float(v) for k,v in rates.items()} == {k: RECIPES[k].lr for k in ('paper', 'official')}
