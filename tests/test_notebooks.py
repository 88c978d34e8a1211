"Every notebook as it is committed: executed, small, clean, and the one its module is exported from"
import ast, json, re
import nbformat, pytest
from common import NAMES, NOTEBOOKS, ROOT

notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=NAMES)
CONTAINERS = {'__init__', '_modidx', '_docstrings', 'all'}


def directives(cell): return dict(re.findall(r'^#\|\s*(\w+):?[ \t]*(.*)$', cell.source, flags=re.M))
def default_exp(nb): return next((d['default_exp'] for c in nb.cells if 'default_exp' in (d := directives(c))), None)


@notebook
def test_outputs(path):
    nb = nbformat.read(path, as_version=4)
    runs = [c for c in nb.cells if c.cell_type == 'code' and c.source.strip() and not directives(c).keys() & {'export', 'exports', 'exporti', 'eval', 'default_exp', 'hide'}]
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    assert outputs or not runs, 'committed without outputs: run `nbdev-test --save`'
    assert not [o for o in outputs if o.output_type == 'error'], 'committed with an error'
    assert path.stat().st_size < 400_000, f'{path.stat().st_size} bytes: make its pictures smaller'


@notebook
def test_clean(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    ids = [c.get('id') for c in nb['cells']]
    assert all(ids) and len(set(ids)) == len(ids), 'cells need ids of their own'
    assert not [c for c in nb['cells'] if c.get('execution_count')], 'run `nbdev-clean`'
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    nbformat.validate(nbformat.from_dict(nb))


@notebook
def test_module_has_the_name_of_its_notebook(path):
    exp = default_exp(nbformat.read(path, as_version=4))
    if exp is not None: assert exp == re.sub(r'^\d+_', '', path.stem)


def test_every_module_has_its_notebook():
    exported = {default_exp(nbformat.read(p, as_version=4)) for p in NOTEBOOKS} - {None}
    assert {p.stem for p in (ROOT/'gmml_nb').glob('*.py')} - CONTAINERS == exported


def imported(module, known):
    "Modules of ours that a module imports, at its top or inside of a function"
    for o in ast.walk(ast.parse((ROOT/f'gmml_nb/{module}.py').read_text(encoding='utf-8'))):
        if isinstance(o, ast.ImportFrom) and o.level == 1: names = [o.module] if o.module else [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom) and (o.module or '').startswith('gmml_nb'): names = [o.module[8:]] if o.module[8:] else [a.name for a in o.names]
        elif isinstance(o, ast.Import): names = [a.name[8:] for a in o.names if a.name.startswith('gmml_nb.')]
        else: continue
        yield from (o.split('.')[0] for o in names if o.split('.')[0] in known)


def test_chapters_import_earlier_ones_only():
    number = {m[2]: int(m[1]) for p in NOTEBOOKS if (m := re.match(r'(\d+)_(\w+)$', p.stem))}
    assert len(set(number.values())) == len(number), 'two chapters have one number'
    wrong = [f'{number[m]}_{m} imports {number[o]}_{o}' for m in number for o in imported(m, number) if number[o] >= number[m]]
    assert 'core' in imported('recipe', number) and not wrong


def test_chapters_do_not_hide_names_of_each_other():
    import importlib
    owner, twice = {}, []
    for mod in sorted({p.stem for p in (ROOT/'gmml_nb').glob('*.py')} - CONTAINERS):
        for name in importlib.import_module(f'gmml_nb.{mod}').__all__:
            if owner.setdefault(name, mod) != mod: twice.append(f'{name}: {owner[name]} and {mod}')
    assert not twice


def test_cells_that_run_only_on_request_are_in_contributing():
    listed = (ROOT/'CONTRIBUTING.md').read_text()
    for p,name in zip(NOTEBOOKS, NAMES):
        flags = {f for c in nbformat.read(p, as_version=4).cells if c.cell_type == 'code' for f in directives(c).keys() & {'cuda', 'slow'}}
        for f in flags: assert re.search(rf'^\| `{re.escape(name)}` \| `{f}` \|', listed, flags=re.M), f'{name}: list its `#| {f}` cells in CONTRIBUTING.md'
