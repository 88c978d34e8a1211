"The demo as it is typed: its rows, its page, going on, several processes, a folder, and mistakes"
import json, re, runpy, shutil, sys, time
from pathlib import Path
import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from PIL import Image
from gmml_nb.data import finetune_dls
from gmml_nb.datasets import get_dataset
from gmml_nb.demo import Pairs, by_draw, drawn, gmml_demo
from gmml_nb.experiment import Experiment

SMALL = '--epochs 1 --finetune-epochs 1 --labels 20 --images 80 --depth 2 --embed-dim 16 --num-heads 2 --seeds 2 --draws 2 --held-out valid'.split()


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    "Run the demo as its console script does; exit status, stdout, stderr"
    monkeypatch.chdir(tmp_path)
    script = tmp_path/'gmml_demo_script.py'
    script.write_text('import sys\nfrom gmml_nb.demo import gmml_demo\nif __name__ == "__main__": sys.exit(gmml_demo())\n')
    def f(*args):
        monkeypatch.setattr(sys, 'argv', ['gmml_demo', *map(str, args)])
        try: runpy.run_path(str(script), run_name='__main__')
        except SystemExit as e: code = e.code or 0
        out, err = capsys.readouterr()
        return code, out.replace('\r', '\n'), err   # a progress bar begins its line anew
    return f


def rows(file): return [json.loads(l) for l in Path(file).read_text().splitlines()]
def values(file): return {r['id']: [r[k] for k in ('value', 'knn', 'probe')] for r in rows(file)}


def test_demo(typed, tmp_path):
    code, out, err = typed('--out', 'demo', *SMALL)
    assert code == 0, err
    assert '2 pretrainings and 8 fine-tunings on 20 labelled images' in out
    assert re.search(r'^random weights +[\d.]+ +[\d.]+ +[\d.]+$', out, flags=re.M)
    assert re.search(r'^ahead by( +[+-][\d.]+ ± [\d.]+){3}$', out, flags=re.M)
    assert re.search(r'^GMML is (better|worse|not clearly different).* points over 2 pretrainings of 2 draws each$', out, flags=re.M)
    page = (tmp_path/'demo/report.html').read_text()
    assert page.count('src="data:image/png;base64,') == 4 and not re.search(r'(src|href)="(?!data:)', page)
    for o in ('<h1>GMML is', '<table', '&quot;finetune_epochs&quot;: 1', 'name="viewport"', '<details>', 'validation images', 'gmml_demo photos/'): assert o in page
    df = rows('demo/results.jsonl')
    assert sorted((r['experiment']['method'], r['experiment']['seed'], r['draw']) for r in df) == [(m, s, d) for m in ('gmml', 'random') for s in (0, 1) for d in (0, 1)]
    assert {r['experiment']['held_out'] for r in df} == {'valid'} and all(0 <= r[k] <= 1 for r in df for k in ('value', 'knn', 'probe'))

    t = time.process_time()   # what is there is not run again; what is missing runs alone, and comes to the same
    was, lines = values('demo/results.jsonl'), Path('demo/results.jsonl').read_text().splitlines()
    code, again, err = typed('--out', 'demo', *SMALL)
    assert code == 0 and 'fine-tunings on' not in again and again.splitlines()[-1] == out.splitlines()[-1] and time.process_time() - t < 10
    Path('demo/results.jsonl').write_text('\n'.join(lines[:-3]))
    code, again, err = typed('--out', 'demo', *SMALL)
    assert code == 0 and '0 pretrainings and 3 fine-tunings' in again, err
    assert values('demo/results.jsonl') == was


def test_another_seed_shares_nothing(typed):
    "Neither a pretraining nor a draw; more draws leave the others as they are"
    typed('--out', 'a', *SMALL, '--draws', 1, '--starts', 'random', '--results', 'r.jsonl')
    was = values('r.jsonl')
    typed('--out', 'b', *SMALL, '--draws', 1, '--starts', 'random', '--results', 'r.jsonl', '--seed', 2)
    code, out, err = typed('--out', 'a', *SMALL, '--draws', 2, '--starts', 'random', '--results', 'r.jsonl')
    assert code == 0 and ' 2 fine-tunings' in out and out.splitlines()[-3] == 'random weights', (out, err)
    now = values('r.jsonl')
    assert len(was) == 2 and len(now) == 6 and now | was == now and len(set(map(tuple, now.values()))) == 6


def test_side_by_side(tmp_path, monkeypatch):
    "Two processes come to what one comes to"
    e = Experiment(images=80, labels=20, size=8, patch_size=2, epochs=1, bs=16, finetune_epochs=1, finetune_bs=10, augment='crop', valid_pct=.1,
                   spare=.2, held_out='valid', model_args=dict(embed_dim=16, depth=2, num_heads=2), change=dict(max_side=.5, blocks=(1, 2)))
    one, two = (Pairs(e, ['random', 'gmml'], range(2), 1, tmp_path/f'{o}.jsonl', tmp_path/o) for o in ('one', 'two'))
    one.run()
    monkeypatch.setattr(Pairs, 'seconds', lambda *_: 100.)
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    try: df = two.run(tmp_path/'pictures')
    finally: torch.set_num_threads(n)
    assert values(one.results) == values(two.results) and len(df) == 4 and not two.parts()
    assert by_draw(df).shape == (2, 2) and (tmp_path/'pictures/gmml_1/reconstructions.png').exists()


@pytest.mark.parametrize('augment', ['crop', None])
def test_a_draw_is_what_finetune_dls_makes(augment):
    ds = get_dataset('digits')
    all_of = finetune_dls(ds, 8, 10, augment, valid_pct=.2, seed=0, device='cpu')
    train = all_of.train.dataset
    ours = drawn(all_of, 50, 3)
    theirs = finetune_dls((train.items, [ds.vocab[i] for i in train.labels]), 8, 10, augment, labels=50, seed=3, valid_pct=0, stats=train.stats, device='cpu')
    for _ in range(2):   # epochs
        for a, b in zip(ours.train, theirs.train, strict=True): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert len(train) == len(all_of.train.dataset) == 1150 and ours.valid is all_of.valid


def test_demo_of_a_folder(typed, photos, tmp_path):
    code, out, err = typed(photos, '--seeds', 1, '--draws', 1, '--epochs', 1, '--finetune-epochs', 1, '--size', 16, '--depth', 2, '--starts', 'random',
                           '--results', 'r.jsonl', '--labels', 6)
    assert code == 0, err
    row, = rows('r.jsonl')
    e = row['experiment']
    assert e['method'] == 'random' and e['patch_size'] == 8 and e['data'] == str(photos) and 'seed=0' in out
    page = (tmp_path/'gmml_demo_out/report.html').read_text()
    assert f'gmml_pretrain {photos} --out encoder --arch vit_tiny_patch16_224 --size 16 --patch-size 8' in page and 'photos/ stands for' not in page
    Image.new('L', (8, 8)).save(photos/'a/new.png')
    code, out, err = typed(photos, '--seeds', 1, '--draws', 1, '--epochs', 1, '--finetune-epochs', 1, '--size', 16, '--depth', 2, '--starts', 'random', '--labels', 6)
    (photos/'a/new.png').unlink()
    assert code == 2 and 'has other images' in err


def test_one_pretraining_has_no_verdict(typed, photos):
    code, out, err = typed(photos, '--seeds', 1, '--draws', 1, '--epochs', 1, '--finetune-epochs', 1, '--size', 16, '--depth', 2, '--labels', 6)
    assert code == 0 and 'no verdict' in out and re.search(r'^ahead by( +[+-][\d.]+){3}$', out, flags=re.M), err


def out_of(typed, *args):
    "The one line of a refusal, in under five seconds of work; nothing is written"
    t = time.process_time()
    code, out, err = typed(*args, '--out', 'never')
    assert time.process_time() - t < 5 and code == 2, (code, out, err)
    assert 'Traceback' not in err and not Path('never').exists() and err.startswith('error: '), err
    return err


@pytest.mark.parametrize('args, words', [
    ('--starts random,gml', "Did you mean 'gmml'"), ('--seeds 0', 'seeds=0'), ('--draws 0', 'draws=0'), ('--labels 0', 'labels=0'), ('--labels 5', 'labels=5'),
    ('--labels 1400', 'labels=1400'), ('--epoch 0', 'epochs=0'), ('--held-out tset', "Did you mean 'test'"), ('--size 9', 'not a multiple of the patch'),
    ('--images 9999', '9999'), ('--augment corp', "Did you mean 'crop'")])
def test_mistakes(typed, args, words): assert words in out_of(typed, *args.split())


def test_unlabelled_images(typed, photos):
    err = out_of(typed, photos/'a')
    assert 'one folder of images for each class' in err and 'gmml_pretrain' in err
    with pytest.raises(ValueError, match='start'): gmml_demo(starts='nothing')


def test_home_folder(typed, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    shutil.copytree(photos, tmp_path/'home/photos')
    code, out, err = typed('~/photos', '--results=~/r.jsonl', '--starts', 'random', '--seeds', 1, '--draws', 1, '--finetune-epochs', 1, '--size', 16, '--depth', 1,
                           '--labels', 6, '--out=~/demo')
    assert code == 0 and (tmp_path/'home/r.jsonl').exists() and not (tmp_path/'~').exists(), err
