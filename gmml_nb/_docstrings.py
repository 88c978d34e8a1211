"""What `nbdev-export` adds to the modules: the comments of the parameters of public functions as part of their docstrings.

`help(gmml_learner)` then says what the notebook says. Where a function takes the fields of a recipe as keywords, they are listed, too.
"""
import ast, json, re, tokenize
from functools import cache
from io import StringIO
from pathlib import Path
from textwrap import indent

NBS = Path(__file__).resolve().parents[1]/'nbs'


def comments(src):
    "Line of the source -> its comment; lines that hold nothing else go on with the one before"
    res,last = {},None
    for t in tokenize.generate_tokens(StringIO(src).readline):
        if t.type != tokenize.COMMENT or t.string.startswith('#|'): continue
        text,(line,_) = t.string.lstrip('# '),t.start
        if t.line.strip() == t.string and last is not None: res[last] += ' ' + text
        else: res[line],last = text,line
    return res


def parameter(name, annotation, default, comment, star=''):
    "A line on one parameter"
    facts = ', '.join(o for o in (annotation and ast.unparse(annotation), default and f'default {ast.unparse(default)}') if o)
    return f'{star}{name}{f" ({facts})" if facts else ""}: {comment}' if comment else None


def parameters(f, notes, fields):
    "A line on each commented parameter of a function, and on what it returns; the fields of a recipe that are taken as keywords"
    a = f.args
    args,defaults = [*a.posonlyargs, *a.args],[*a.defaults]
    pairs = [*zip(args, [None]*(len(args) - len(defaults)) + defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    lines = [parameter(o.arg, o.annotation, d, notes.get((d or o).end_lineno)) for o,d in pairs]
    if len({(d or o).end_lineno for o,d in pairs}) < len(pairs): lines = together(pairs, notes)
    if a.kwarg:
        note = notes.get(a.kwarg.end_lineno) or ''
        lines.append(parameter(a.kwarg.arg, None, None, note, '**'))
        lines += [f'    {o}' for k in re.findall(r'ields of `(\w+)`', note) for o in fields.get(k, []) if o]
    last = max([o.end_lineno for o in [*args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg, f.returns, *defaults])]], default=f.lineno)
    end = f.body[0].lineno - 1
    if (found := [notes[i] for i in range(max(last, f.returns.end_lineno if f.returns else last + 1), end + 1) if i in notes]):
        lines.append(f'Returns{f" ({ast.unparse(f.returns)})" if f.returns else ""}: {found[-1]}')
    return [o for o in lines if o]


def together(pairs, notes):
    "The same where several parameters share a line and its comment"
    by_line = {}
    for o,d in pairs: by_line.setdefault((d or o).end_lineno, []).append((o, d))
    return [parameter(', '.join(o.arg for o,_ in v), v[0][0].annotation if len(v) == 1 else None, v[0][1] if len(v) == 1 else None, notes.get(k))
            for k,v in by_line.items()]


@cache
def recipes():
    "The fields of each frozen dataclass of the notebooks, a line a field"
    res = {}
    for p in NBS.glob('*.ipynb'):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            src = ''.join(c['source'])
            if c['cell_type'] != 'code' or '@dataclass(frozen=True)' not in src or not src.startswith('#| export'): continue
            notes = comments(src)
            for k in ast.parse(src).body:
                if isinstance(k, ast.ClassDef):
                    res[k.name] = [parameter(o.target.id, o.annotation, o.value, notes.get(o.end_lineno)) for o in k.body if isinstance(o, ast.AnnAssign)]
    return res


def documented(o, notes, fields):
    "The docstring of a function or a class with its parameters, or None where there is nothing to add"
    f = o if isinstance(o, ast.FunctionDef) else next((m for m in o.body if isinstance(m, ast.FunctionDef) and m.name == '__init__'), None)
    doc,lines = ast.get_docstring(o),f and parameters(f, notes, fields)
    return '\n'.join([doc, '', *lines]) if doc and lines else None


def with_docstrings(src, fields):
    "The source of a cell, its public functions and classes documented in full"
    tree,notes,lines = ast.parse(src),comments(src),src.splitlines(keepends=True)
    public = [o for o in tree.body if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not o.name.startswith('_')]
    for o in reversed(public):
        doc = documented(o, notes, fields)
        if not doc: continue
        at,pad = o.body[0],' '*o.body[0].col_offset
        quoted = indent(doc.replace('\\', '\\\\').replace('"""', "'''"), pad).lstrip()
        if quoted.endswith('"'): quoted += ' '
        lines[at.lineno-1:at.end_lineno] = [f'{pad}"""{quoted}\n{pad}"""\n']
    return ''.join(lines)


class Docstrings:
    "A processor of `nbdev-export`"
    def __init__(self, nb): self.fields = recipes()
    def __call__(self, cell):
        if cell.cell_type == 'code' and {'export', 'exports'} & set(cell.directives_): cell.source = with_docstrings(cell.source, self.fields)
