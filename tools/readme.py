"Write README.md and its pictures from the executed nbs/index.ipynb; needs nbconvert, not Quarto.  Usage: python tools/readme.py"
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTICE = '<!-- Written by `make readme` from nbs/index.ipynb. Edit that notebook, not this file. -->\n\n'
DIRECTIVE = re.compile(r'^#\|\s*(\S+?):?(?:\s+(.*))?$')


def split_directives(source):
    "The leading `#| name: value` lines of a code cell as a dict, and the code below them"
    lines, found = source.split('\n'), {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m[1]] = (m[2] or 'true').strip().lower()
        lines.pop(0)
    return found, '\n'.join(lines).strip('\n')


def shown(cell):
    "`cell` as the README shows it, or None when it is hidden"
    if cell.cell_type == 'raw': return
    if cell.cell_type != 'code':
        cell.source = split_directives(cell.source)[1]   # `#| export`: for llms.txt
        return cell
    if alt := re.findall(r'^#\|\s*fig-alt:\s*(.+)$', cell.source, flags=re.M): cell.metadata.alt = alt
    opts, cell.source = split_directives(cell.source)
    if {'hide', 'default_exp'} & opts.keys() or opts.get('include') == 'false': return
    if opts.get('output') == 'false': cell.outputs = []
    if opts.get('echo') == 'false': cell.metadata.transient = {'remove_source': True}
    return cell if cell.source or cell.outputs else None


def relink(text):
    "Point links to other notebooks at their place in the repository"
    return re.sub(r'\]\((?!https?:|/|#)([\w./-]+\.ipynb)', r'](nbs/\1', text)


def render(path=ROOT/'nbs/index.ipynb'):
    "README.md as text, and its pictures as `{path relative to the root: bytes}`"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in map(shown, nb.cells) if c is not None]
    alts = iter([o for c in nb.cells for o in c.metadata.pop('alt', [])])
    nb.metadata['language_info'] = {'name': 'python'}
    exporter = MarkdownExporter(config=Config(ExtractOutputPreprocessor=dict(output_filename_template='README_files/{cell_index}_{index}{extension}')))
    text, resources = exporter.from_notebook_node(nb)
    text = re.sub(r'<style\b.*?</style>\n?', '', text, flags=re.S)   # GitHub shows style sheets as text
    text = re.sub(r'!\[(png|jpeg|svg)\]', lambda m: f'![{next(alts, m[1])}]', text)
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return NOTICE + relink(text), resources.get('outputs', {})


def differences(text, pictures, root=ROOT):
    "The files below `root` that are not as `render` would write them"
    have = {p.relative_to(root).as_posix() for p in (root/'README_files').glob('*')}
    want = {'README.md': text.encode(), **pictures}
    differ = [n for n, b in want.items() if not (root/n).exists() or (root/n).read_bytes() != b]
    return sorted(differ + list(have - set(want)))


def main():
    text, pictures = render()
    differ = differences(text, pictures)
    for name in differ: (ROOT/name).unlink(missing_ok=True)
    for name, data in {'README.md': text.encode(), **pictures}.items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(data)
    print(f"README.md: {', '.join(differ)} written" if differ else 'README.md is up to date')


if __name__ == '__main__': sys.exit(main())
