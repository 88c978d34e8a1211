"Build the docs site: nbdev's processing, then Quarto where it is installed, else smalldocs.  Usage: python tools/docs.py"
import argparse, importlib, inspect, json, os, re, shutil, subprocess, sys, tempfile, textwrap
from pathlib import Path
import nbformat, yaml
from nbconvert import MarkdownExporter
from nbdev.config import get_config, nbpath2html
from nbdev.serve import proc_nbs
from traitlets.config import Config
from readme import shown

ROOT = Path(__file__).resolve().parents[1]
DATAFRAME = '<table border="1" class="dataframe">', '<table class="dataframe table table-sm">'   # pandas', and in the site's style


def local_links(stage):
    "Make links to our own site relative, so that they work wherever the pages are read"
    site = re.escape(get_config().doc_url)
    for nb in stage.rglob('*.ipynb'):
        up = '../'*(len(nb.relative_to(stage).parts) - 1)
        text = nb.read_text(encoding='utf-8')
        nb.write_text(re.sub(rf'{site}([\w./-]+\.html)', rf'{up}\1', text), encoding='utf-8')


def words(text):
    "The last sentence of some Markdown without its marks; '' when it ends with a list, a table or code"
    last = text.strip().split('\n\n')[-1]
    if re.match(r'[-|`>$!<]|\d+\.', last): return ''
    last = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', re.sub('^#+ ', '', last))
    return re.split(r'(?<=[.!?])\s', re.sub(r'[`*\\$]', '', last))[-1].rstrip(':.')


def texts_for_pictures(stage):
    "Give each picture without `#| fig-alt` one: its section and the sentence before it. Tables take the site's style"
    for p in stage.rglob('*.ipynb'):
        nb = nbformat.read(p, as_version=4)
        title = section = before = ''
        for c in nb.cells:
            if c.cell_type == 'raw': title = section = (re.search(r"^title: '?(.*?)'?$", c.source, flags=re.M) or ['', section])[1]
            if c.cell_type == 'markdown':
                c.source = re.sub(r'\A(#\|.*\n)+', '', c.source)   # marks of what goes into docstrings
                heads = re.findall(r'^#+ .+', c.source, flags=re.M)
                if heads: section,before = words(heads[-1]),''
                if not c.source.startswith('#'): before = words(c.source) or before
            if c.cell_type != 'code': continue
            data = [o.get('data', {}) for o in c.outputs]
            for d in data:
                if 'text/html' in d: d['text/html'] = d['text/html'].replace(*DATAFRAME).replace('text-align: right', 'text-align: left')
            if any(k.startswith('image/') for d in data for k in d) and not re.search(r'^#\|\s*fig-alt', c.source, flags=re.M):
                alt = textwrap.shorten(': '.join(o for o in (section, before or f'a figure of the page {title}') if o), 200, placeholder=' ...')
                c.source = f'#| fig-alt: {json.dumps(alt, ensure_ascii=False)}\n{c.source}'
        nbformat.write(nb, p)


def about(o):
    "One line on a public object: the first of its docstring, or what a constant holds"
    if callable(o): return (inspect.getdoc(o) or '').split('\n')[0]
    held = ', '.join(f'`{k}`' for k in o) if isinstance(o, dict) else f'`{o!r}`'
    return f'{type(o).__name__}: {textwrap.shorten(held, 150, placeholder=" ...")}'


def only_documented():
    "Forget the names of helpers (`#| exporti`), which have no place on a page, so that no link leads there"
    from gmml_nb._modidx import d
    for name,syms in d['syms'].items():
        mod = importlib.import_module(name)
        for s in list(syms):
            top = s.removeprefix(f'{name}.').split('.')[0]
            if top not in mod.__all__ and getattr(getattr(mod, top, None), '__module__', name) == name: del syms[s]


def short_docstrings():
    "Docstrings without the parameters that `nbdev-export` has put there: pages show those as tables"
    from gmml_nb._modidx import d
    for name,syms in d['syms'].items():
        for n in syms:
            o = importlib.import_module(name)
            for part in n.removeprefix(f'{name}.').split('.'): o = getattr(o, part, None)
            if isinstance(o, property): o = o.fget
            if getattr(o, '__doc__', None) and (inspect.isfunction(o) or inspect.isclass(o)): o.__doc__ = o.__doc__.split('\n\n')[0]


def reference(stage):
    "Write the page of all public names, each with its line and a link to where its chapter explains it"
    import gmml_nb.all as public
    from gmml_nb._modidx import d
    page = ['---', 'title: Reference', 'description: Every public name, module by module', '---', '',
            'In a session, `from gmml_nb.all import *` brings all of these. A name leads to its parameters, in the chapter that explains it.', '']
    for name,syms in d['syms'].items():
        mod,short = importlib.import_module(name),name.split('.')[-1]
        names = [o for o in mod.__all__ if hasattr(public, o)] + sorted(o for s in syms if (o := s.removeprefix(f'{name}.')).startswith('Learner.') and '._' not in o)
        if not names: continue
        page += [f'## {name}', '', (mod.__doc__ or '').split('\n')[0], '', '| name | what it is |', '|---|---|']
        for n in names:
            o = mod
            for part in n.split('.'): o = getattr(o, part)
            link = syms.get(f'{name}.{n}', [f'{short}.html'])[0]
            page.append(f"| [`{n}`]({link}) | {about(o).replace('|', chr(92) + '|')} |")
        page.append('')
    (stage/'reference.qmd').write_text('\n'.join(page), encoding='utf-8')


def page_names(stage):
    "Give pages the names that links to them have: 10_corruption.ipynb becomes corruption.ipynb. Quarto does it itself"
    new = {p.name: nbpath2html(p).with_suffix('.ipynb').name for p in stage.rglob('*.ipynb')}
    rename = lambda m: m[1] + new.get(m[2], m[2])
    for p in list(stage.rglob('*.ipynb')):
        text = re.sub(r'(\]\([^)\s"]*?)([^/(]+\.ipynb)', rename, p.read_text(encoding='utf-8'))
        p.unlink()
        p.with_name(new[p.name]).write_text(text, encoding='utf-8')
    cfg = stage/'_quarto.yml'
    cfg.write_text(re.sub(r'()([\w.-]+\.ipynb)', rename, cfg.read_text(encoding='utf-8')), encoding='utf-8')


def as_markdown(stage):
    "Each page for readers of text, `{path of PAGE.html.md: text}`: what `llms.txt` and the docstrings of modules lead to. Words in place of pictures"
    exporter = MarkdownExporter(config=Config(NbConvertBase=dict(display_data_priority=['text/markdown', 'text/plain'])))
    pages = {}
    for p in stage.rglob('*.ipynb'):
        nb = nbformat.read(p, as_version=4)
        about = next((yaml.safe_load(c.source.strip().strip('-')) for c in nb.cells if c.cell_type == 'raw' and c.source.startswith('---')), {})
        for c in nb.cells:
            c.metadata.pop('execution', None)   # not as nbformat wants it
            alt = re.search(r'^#\|\s*fig-alt:\s*"?(.*?)"?$', c.source, flags=re.M)
            for o in c.get('outputs', []):
                if any(k.startswith('image/') for k in o.get('data', {})): o.data = {'text/markdown': f"*Picture: {alt[1] if alt else 'no words for it'}*"}
        nb.cells = [c for c in map(shown, nb.cells) if c is not None and not c.source.startswith('<!--')]
        nb.metadata['language_info'] = {'name': 'python'}
        head = f"# {about.get('title', p.stem)}\n\n" + (f"> {about['description']}\n\n" if about.get('description') else '')
        text = re.sub(r'\{target="_blank"[^}]*\}', '', head + exporter.from_notebook_node(nb)[0].strip() + '\n')
        link = lambda m: f'{m[1]}{nbpath2html(Path(m[2])).name}.md'
        page = nbpath2html(p.relative_to(stage))
        pages[page.with_name(page.name + '.md')] = re.sub(r'(\]\((?!https?:)[^)\s"]*?)([^/(]+\.ipynb)', link, re.sub(r'\n{3,}', '\n\n', text))
    return pages


def render_smalldocs(stage):
    "Render the pages in `stage`: the folder of the site"
    from smalldocs.site import build
    page_names(stage)
    site = build(stage, quiet=True)
    for w in site.warnings:
        if not re.search('output-file|grid', w): print(f'warning: {w}', file=sys.stderr)
    return site.out


def render_quarto(stage):
    "The same with Quarto"
    subprocess.run(['quarto', 'render', str(stage), '--no-execute'], check=True)
    return stage/yaml.safe_load((stage/'_quarto.yml').read_text())['project']['output-dir']


def main():
    p = argparse.ArgumentParser(description='Build the docs site')
    p.add_argument('--engine', choices=['quarto', 'smalldocs'], default='quarto' if shutil.which('quarto') else 'smalldocs')
    p.add_argument('--out', type=Path, default=ROOT/'_docs', help='folder of the site, replaced (default: _docs)')
    args = p.parse_args()
    out = args.out.resolve()
    os.chdir(ROOT)
    only_documented(), short_docstrings()
    processed = proc_nbs(n_workers=0, force=True)
    with tempfile.TemporaryDirectory() as d:
        stage = Path(d)/'pages'
        shutil.copytree(processed, stage)
        reference(stage)
        local_links(stage)
        texts_for_pictures(stage)
        texts = as_markdown(stage)
        made = dict(quarto=render_quarto, smalldocs=render_smalldocs)[args.engine](stage)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
    for page,text in texts.items(): (out/page).write_text(text, encoding='utf-8')
    shutil.copy(ROOT/'nbs/llms.txt', out)   # written by nbdev-export, from the front page and the chapters
    print(f'{out}: {len(list(out.rglob("*.html")))} pages, by {args.engine}. Open {out/"index.html"}')


if __name__ == '__main__': sys.exit(main())
