"`gmml_worth` and `gmml_demo` as they are typed: rows, page, going on, several processes, a folder, a start, no labels, and mistakes"
import json, re, runpy, shutil, sys, time
from pathlib import Path
import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from PIL import Image
from gmml_nb.experiment import Experiment
from gmml_nb.worth import Onlook, worth_base, worth_it, worth_sweep

SMALL = '--epochs 1 --finetune-epochs 1 --labels 20 --images 80 --depth 2 --embed-dim 16 --num-heads 2 --seeds 2 --draws 2'.split()
TINY = '--seeds 1 --draws 1 --epochs 1 --finetune-epochs 1 --size 16 --depth 2 --labels 6'.split()


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    "Run a command as its console script does; exit status, stdout, stderr"
    monkeypatch.chdir(tmp_path)
    def f(*args, name='gmml_worth'):
        script = tmp_path/f'{name}_script.py'
        script.write_text(f'import sys\nfrom gmml_nb.demo import {name}\nif __name__ == "__main__": sys.exit({name}())\n')
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        try: runpy.run_path(str(script), run_name='__main__')
        except SystemExit as e: code = e.code or 0
        out, err = capsys.readouterr()
        return code, out.replace('\r', '\n'), err   # a progress bar begins its line anew
    return f


def rows(file): return [json.loads(l) for l in Path(file).read_text().splitlines()]
def values(file): return {r['id']: [r[k] for k in ('value', 'knn', 'probe')] for r in rows(file)}


def test_demo(typed, tmp_path):
    code, out, err = typed('--out', 'demo', *SMALL, name='gmml_demo')
    assert code == 0, err
    assert '2 pretrainings and 8 fine-tunings on 20 labelled images' in out
    assert len(re.findall(r'^(?:random weights|GMML) +([\d.]+ +){4}4 +[\d.]+$', out, flags=re.M)) == 2
    assert re.search(r'^GMML reaches [\d.]+ %, .* no pretraining.*; a pretraining took \d+ s\.$', out, flags=re.M)
    page = (tmp_path/'demo/report.html').read_text()
    assert page.count('src="data:image/png;base64,') == 3 and not re.search(r'(src|href)="(?!data:)', page)
    for o in ('<h1>GMML reaches', '<table', '&quot;finetune_epochs&quot;: 1', '&quot;finetune_recipe&quot;: &quot;few&quot;', 'name="viewport"', '<details>', 'gmml_worth photos/'): assert o in page
    df = rows('demo/results.jsonl')
    assert sorted((r['experiment']['method'], r['experiment']['seed'], r['experiment']['draw']) for r in df) == [(m, s, d) for m in ('gmml', 'random') for s in (0, 1) for d in (0, 1)]
    assert all(0 <= r[k] <= 1 for r in df for k in ('value', 'knn', 'probe'))

    t = time.process_time()   # what is there is not run again; what is missing runs alone, and comes to the same
    was, lines = values('demo/results.jsonl'), Path('demo/results.jsonl').read_text().splitlines()
    code, again, err = typed('--out', 'demo', *SMALL, name='gmml_demo')
    assert code == 0 and 'fine-tunings on' not in again and again.splitlines()[-1] == out.splitlines()[-1] and time.process_time() - t < 10
    Path('demo/results.jsonl').write_text('\n'.join(lines[:-3]))
    code, again, err = typed('--out', 'demo', *SMALL, name='gmml_demo')
    assert code == 0 and '0 pretrainings and 3 fine-tunings' in again, err
    assert values('demo/results.jsonl') == was


def test_side_by_side(tmp_path):
    "Two processes come to what one comes to, in what a callback has noted, too"
    e = worth_base('digits', images=80, labels=20, epochs=1, finetune_epochs=1, model_args=dict(embed_dim=16, depth=2, num_heads=2))
    one, two = (worth_sweep(e, tmp_path/o, seeds=2, draws=1) for o in ('one', 'two'))
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    try: df = [o.run(jobs, False, [Onlook()]) for o, jobs in ((one, 1), (two, 2))]
    finally: torch.set_num_threads(n)
    assert values(one.results) == values(two.results) and len(df[1]) == 4 and not two.todo
    assert df[0].held_out_losses.notna().equals(df[1].held_out_losses.notna())


def test_demo_of_a_folder_and_a_start(typed, photos, tmp_path):
    code, out, err = typed(photos, *TINY)
    assert code == 0 and 'cannot tell' in out, err
    row = rows('gmml_worth_out/results.jsonl')[0]
    e = row['experiment']
    assert e['method'] == 'random' and e['patch_size'] == 8 and e['data'] == str(photos) and 'seed=0' in out
    assert 'More runs: 5 pretrainings' in (tmp_path/'gmml_worth_out/report.html').read_text()
    start, = (tmp_path/'gmml_worth_out/runs').glob('*/encoder')
    code, out, err = typed(photos, '--start', start, '--seeds', 1, '--draws', 1, '--epochs', 1, '--finetune-epochs', 1, '--labels', 6, '--out', 'four')
    assert code == 0 and len(rows('four/results.jsonl')) == 4 and 'One run each cannot tell whether going on helps' in out, err
    Image.new('L', (8, 8)).save(photos/'a/new.png')
    code, out, err = typed(photos, *TINY)
    (photos/'a/new.png').unlink()
    assert code == 2 and 'has other images' in err


def test_without_labels(typed, photos):
    code, out, err = typed(photos/'a', '--epochs', 10, '--size', 16, '--depth', 1, '--change', 'bs=4')
    assert code == 0 and 'There are no labels' in out and 'five to ten images of each class' in out, err
    page = Path('gmml_worth_out/report.html').read_text()
    assert page.count('src="data:image/png;base64,') == 1 and 'gmml_pretrain' in page and not Path('gmml_worth_out/results.jsonl').exists()


def out_of(typed, *args):
    "The one line of a refusal, in under five seconds of work; nothing is written"
    t = time.process_time()
    code, out, err = typed(*args, '--out', 'never')
    assert time.process_time() - t < 5 and code == 2, (code, out, err)
    assert 'Traceback' not in err and not Path('never').exists() and err.startswith('error: '), err
    return err


@pytest.mark.parametrize('args, words', [
    ('--start gmml-cifer10', "gmml-cifer10"), ('--seeds 0', 'seeds=0'), ('--draws 0', 'draws=0'), ('--labels 0', 'labels=0'), ('--labels 5', 'labels=5'),
    ('--labels 1440', 'labels=1440'), ('--epoch 0', 'epochs=0'), ('--size 9', 'not a multiple of the patch'), ('--images 9999', '9999'), ('--lr .1', '--change "lr=..."'),
    ('--change augmant=crop', "Did you mean 'augment'"), ('--change augment=corp', "Did you mean 'crop'")])
def test_mistakes(typed, args, words): assert words in out_of(typed, 'digits', *args.split())


def test_loose_images_are_a_mistake(typed, photos):
    Image.new('L', (8, 8)).save(photos/'loose.png')
    try: assert 'not in a folder named after their class' in out_of(typed, photos)
    finally: (photos/'loose.png').unlink()


def test_home_folder(typed, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    shutil.copytree(photos, tmp_path/'home/photos')
    code, out, err = typed('~/photos', *TINY, '--out=~/demo')
    assert code == 0 and (tmp_path/'home/demo/results.jsonl').exists() and not (tmp_path/'~').exists(), err
