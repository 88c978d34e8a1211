"Build the docs site: nbdev's processing, then Quarto where it is installed, else smalldocs.  Usage: python tools/docs.py"
import argparse, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
import yaml
from nbdev.config import get_config, nbpath2html
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]


def local_links(stage):
    "Make links to our own site relative, so that they work wherever the pages are read"
    site = re.escape(get_config().doc_url)
    for nb in stage.rglob('*.ipynb'):
        up = '../'*(len(nb.relative_to(stage).parts) - 1)
        text = nb.read_text(encoding='utf-8')
        nb.write_text(re.sub(rf'{site}([\w./-]+\.html)', rf'{up}\1', text), encoding='utf-8')


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
    processed = proc_nbs(n_workers=0, force=True)
    with tempfile.TemporaryDirectory() as d:
        stage = Path(d)/'pages'
        shutil.copytree(processed, stage)
        local_links(stage)
        made = dict(quarto=render_quarto, smalldocs=render_smalldocs)[args.engine](stage)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
    print(f'{out}: {len(list(out.rglob("*.html")))} pages, by {args.engine}. Open {out/"index.html"}')


if __name__ == '__main__': sys.exit(main())
