"The commands as they are typed: --help, runs, settings, going on, and mistakes"
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import matplotlib; matplotlib.use('Agg')
import numpy as np, pandas as pd, pytest, runpy, timm, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from fastai.learner import Learner
from gmml_nb import cli, command, data
from gmml_nb.cli import gmml_bench, gmml_finetune, gmml_pretrain, gmml_sweep
from gmml_nb.demo import gmml_demo
from gmml_nb.data import finetune_dls
from common import ROOT, code as exit_code, ranks

TINY = '--arch vit_tiny_patch16_224 --size 8 --patch-size 2 --embed-dim 24 --depth 2 --num-heads 2'.split()


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    "Run a command as its console script does; returns exit status, stdout, stderr"
    monkeypatch.chdir(tmp_path), monkeypatch.setenv('COLUMNS', '120')
    ctrl_c = signal.getsignal(signal.SIGINT)
    def f(name, *args):
        script = tmp_path/f'{name}_script.py'
        script.write_text(f'import sys\nfrom gmml_nb.{"demo" if name in ("gmml_demo", "gmml_worth") else "cli"} import {name}\nif __name__ == "__main__": sys.exit({name}())\n')
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        try: runpy.run_path(str(script), run_name='__main__')
        except SystemExit as e: code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err
    yield f
    signal.signal(signal.SIGINT, ctrl_c)


@pytest.fixture(scope='module')
def encoder(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('enc')/'enc'
    gmml_pretrain(photos, out=out, arch='vit_tiny_patch16_224', size=8, patch_size=2, in_chans=1, embed_dim=24, depth=2, num_heads=2,
                  epochs=2, bs=16, change=dict(flip=0))
    return out


HEAVY = 'torch torchvision fastai timm pandas matplotlib fastcore.all numpy'.split()

def test_light_until_work_begins():
    "The package and the commands are there before anything that takes seconds is imported"
    code = f'import sys, gmml_nb.cli; print(*[o for o in {HEAVY} if o in sys.modules])'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=100)
    assert (r.returncode, r.stdout, r.stderr) == (0, '\n', '')


LIGHT = """
import sys
sys.argv = sys.argv[1:]
class Refuse:
    def find_spec(self, name, *args):
        if name in HEAVY: raise SystemExit(f'{name} is imported')
sys.meta_path.insert(0, Refuse())
from gmml_nb.cli import NAME
if __name__ == '__main__': sys.exit(NAME())
"""

@pytest.mark.parametrize('words, said', [('gmml_pretrain --help', 'usage: gmml_pretrain'), ('gmml_finetune --help', 'usage: gmml_finetune'), ('gmml_sweep --help', 'usage: gmml_sweep'),
    ('gmml_bench --help', 'usage: gmml_bench'), ('gmml_pretrain photoz', "Did you mean 'photos'"), ('gmml_pretrain no/photos', 'no such folder'), ('gmml_pretrain photos --epohcs 3', "Did you mean '--epochs'"),
    ('gmml_pretrain photos --flip 0', '--change "flip=..."'), ('gmml_pretrain photos --recipe papr', "Did you mean 'paper'"), ('gmml_pretrain photos --out photos', 'holds other files'),
    ('gmml_finetune photos runs/enc', 'no such folder here'), ('gmml_finetune photos --augment diet', "Did you mean 'deit'"), ('gmml_sweep metods', "Did you mean 'methods'"),
    ('gmml_bench step,memroy', "Did you mean 'memory'"), ('gmml_finetune photos --settings none.json', 'none.json')])
def test_an_answer_without_imports(tmp_path, words, said):
    (tmp_path/'photos/a').mkdir(parents=True)
    (tmp_path/'run.py').write_text(LIGHT.replace('HEAVY', str(HEAVY)).replace('NAME', words.split()[0]))
    r = subprocess.run([sys.executable, 'run.py', *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=100, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert said in r.stdout + r.stderr and r.returncode == (0 if 'usage' in said else 2), r.stdout + r.stderr
    if r.returncode: assert r.stderr.startswith('error: ') and r.stderr.count('\n') == 1


@pytest.mark.parametrize('module, what', [('datasets', 'DATASETS'), ('recipe', 'RECIPES'), ('finetune', 'FINETUNE_RECIPES'), ('augment', 'AUGMENTS'),
                                          ('experiment', 'METHOD_NAMES'), ('ablations', 'SWEEPS'), ('benchmark', 'BENCHMARKS')])
def test_names_in_the_source_are_the_names(module, what):
    assert command.names_in(module, what) == tuple(getattr(__import__(f'gmml_nb.{module}', fromlist='_'), what))


def test_fields_in_the_source_are_the_fields():
    from gmml_nb.finetune import FINETUNE_RECIPES
    from gmml_nb.recipe import RECIPES
    assert command.names_in('recipe', 'Recipe') == tuple(vars(RECIPES['paper'])) and command.names_in('finetune', 'FinetuneRecipe') == tuple(vars(FINETUNE_RECIPES['deit']))


def test_one_table():
    "Every option is in the table, of a kind that there is, under one group; the docstring has each"
    table = [k for d in command.OPTIONS.values() for k in d]
    assert len(table) == len(set(table)) and {kind for d in command.OPTIONS.values() for kind,_ in d.values()} <= set(command.OPTION_KINDS)
    for c in (gmml_pretrain, gmml_finetune, gmml_sweep, gmml_bench, gmml_demo):
        assert set(c.options) <= set(table) and all(f'\n{k} (' in c.__doc__ for k in c.options) and '\nReturns' in c.__doc__


@pytest.mark.parametrize('name', ['gmml_pretrain', 'gmml_finetune', 'gmml_demo', 'gmml_worth', 'gmml_sweep', 'gmml_bench'])
def test_help(typed, name):
    code, out, err = typed(name, '--help')
    assert code == 0 and not err and f'usage: {name}' in out
    flags = re.findall(r'^  (--[\w-]+)(?: [A-Z,]+)?\s+(\S.*)', out, flags=re.M)
    assert len(flags) > (2 if name == 'gmml_bench' else 9) and not [f for f,text in flags if len(text) < 10]
    assert '(default:' in out and not re.findall(r'--\w+_\w+', out) and 'Returns' not in out and ('torchrun' in out) == (name in ('gmml_pretrain', 'gmml_finetune'))
    assert re.search('^run:', out, flags=re.M) and re.search('^output:', out, flags=re.M)


def test_installed_command():
    "The script that pip wrote, and no warning of other packages on the way"
    env = {k: v for k,v in os.environ.items() if k != 'PYTHONWARNINGS'}
    r = subprocess.run([Path(sys.executable).parent/'gmml_pretrain', 'no/such/folder'], capture_output=True, text=True, timeout=300, env=env)
    assert r.returncode == 2 and r.stderr.startswith('error: no such folder') and r.stderr.count('\n') == 1, r.stderr


CTRL_C = """
import os, signal, sys
sys.argv = ['gmml_pretrain', 'PHOTOS']
class Stop:
    def find_spec(self, name, *args):
        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop())
from gmml_nb.cli import gmml_pretrain
if __name__ == '__main__': sys.exit(gmml_pretrain())
"""

def test_ctrl_c_in_the_first_seconds(typed, photos, tmp_path, monkeypatch):
    "While the imports go on, and while images are read: one line, and 130"
    (tmp_path/'run.py').write_text(CTRL_C.replace('PHOTOS', str(photos)))
    r = subprocess.run([sys.executable, tmp_path/'run.py'], capture_output=True, text=True, timeout=100)
    assert (r.returncode, r.stderr) == (130, 'stopped\n')
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(data, 'pretrain_dls', stop)
    code, out, err = typed('gmml_pretrain', photos, *TINY)
    assert (code, err) == (130, 'stopped\n')


def test_a_log_has_rows(photos, tmp_path):
    "Into a file, without a terminal: no bar, the first and the last epoch, and when it will be over"
    with open(tmp_path/'log', 'w') as f:
        r = subprocess.run([Path(sys.executable).parent/'gmml_pretrain', photos, '--epochs', '5', '--bs', '16', '--in-chans', '1', *TINY], cwd=tmp_path, stdout=f, stderr=subprocess.PIPE, text=True)
    log = (tmp_path/'log').read_bytes().decode()
    assert r.returncode == 0, r.stderr
    assert '\r' not in log and '█' not in log and log.count('\n') < 12
    head, *rows = [l.split() for l in log.splitlines() if re.match(r'epoch|\d+ +\d\.', l)]
    assert head == ['epoch', 'train_loss', 'valid_loss', 'time', 'left'] and [r[0] for r in rows] == ['0', '4']
    assert re.fullmatch(r'\d\d:\d\d', rows[0][-1]) and rows[1][-1] == '00:00'


def test_rows_and_signs_of_life(photos, tmp_path, monkeypatch, capsys):
    "As many as seconds allow; a learner is as before afterwards; a run that goes on counts from where it does"
    args = dict(arch='vit_tiny_patch16_224', size=8, patch_size=2, in_chans=1, embed_dim=24, depth=2, num_heads=2, bs=16)
    monkeypatch.setattr(command, 'ROW_SECONDS', 0), monkeypatch.setattr(command, 'ALIVE_SECONDS', 0)
    learn = gmml_pretrain(photos, out=tmp_path/'enc', epochs=3, **args)
    out = capsys.readouterr().out
    assert re.findall(r'^(\d) +0', out, flags=re.M) == ['0', '1', '2'] and re.search(r'^epoch 1, step 2 of 2, loss 0\.\d{4}, \d\d:\d\d left$', out, flags=re.M)
    learn.fit(1)
    assert '\r' in capsys.readouterr().out and '.keep_row' not in repr(learn.logger)
    clock = type('O', (command.LogClock,), dict(log_began=(time.monotonic() - 60, .5), pct_train=.75))()
    assert clock.time_left() == '01:00'


def files(folder): return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in Path(folder).rglob('*') if p.is_file()}


def test_pretrain_writes_and_a_finished_run_is_left_alone(typed, photos, tmp_path):
    args = ['gmml_pretrain', photos, '--out', 'enc', '--in-chans', 1, '--epochs', 2, '--bs', 16, '--change', 'flip=0 crop=.5,1', *TINY]
    code, out, err = typed(*args)
    assert code == 0, err
    assert 'settings: data=' in out and "local-dir:enc'" in out
    o = json.loads((tmp_path/'enc/settings.json').read_text())
    assert o['command'] == 'gmml_pretrain' and o['options']['epochs'] == 2 and o['options']['bs'] == 16 and 'settings' not in o['options']
    assert o['recipe']['crop'] == [.5, 1] and o['recipe']['blocks'] == [1, 2] and o['images'] == 43 and o['finished']
    history = pd.read_csv(tmp_path/'enc/history.csv')
    assert list(history.columns) == ['epoch', 'train_loss', 'valid_loss'] and len(history) == 2 and not history.isna().any().any()
    assert Image.open(tmp_path/'enc/reconstructions.png').size[0] > 300
    model = timm.create_model(f'local-dir:{tmp_path/"enc"}', pretrained=True)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 24) and len(model.blocks) == 2
    assert [p.name for p in (tmp_path/'enc/checkpoint').iterdir()] == ['finished']

    before = files(tmp_path/'enc')
    code, out, _ = typed(*args)
    assert code == 0 and 'enc is finished' in out and files(tmp_path/'enc') == before
    for more, words in ((['--bs', 8], 'bs was 16 and is 8'), (['--lr', .05], 'lr was 0.0005 and is 0.05'), (['--epochs', 3], 'n_epoch was 2 and is 3')):
        code, out, err = typed(*args, *more)
        assert code == 2 and words in err and 'another --out' in err and files(tmp_path/'enc') == before

    code, out, err = typed('gmml_pretrain', '--settings', 'enc', '--out', 'enc2', '--epochs', 1)   # options given here win
    assert code == 0, err
    new = json.loads((tmp_path/'enc2/settings.json').read_text())['options']
    assert new == {**o['options'], 'out': 'enc2', 'epochs': 1}


def test_killed_anywhere_it_goes_on(photos, tmp_path, monkeypatch):
    "In training; after it, before anything is written; and with weights whose settings were not written any more"
    go = lambda: gmml_pretrain(photos, out=tmp_path/'enc', arch='vit_tiny_patch16_224', size=8, patch_size=2, in_chans=1, embed_dim=24, depth=2, num_heads=2,
                               epochs=2, bs=16, save_steps=1)
    def stop(*args, **kwargs): raise KeyboardInterrupt
    def noted(write, start=cli.note_start):
        cb = start(write)
        cb.after_batch = lambda: stop() if cb.train_iter > 2 else None
        return cb
    for where in ('train', 'export_encoder', 'show_reconstructions'):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            if where == 'train': m.setattr(cli, 'note_start', noted)
            else: m.setattr(Learner, where, stop)
            go()
        o = json.loads((tmp_path/'enc/settings.json').read_text())
        assert not o['finished'] and o['options']['epochs'] == 2
    go()
    assert json.loads((tmp_path/'enc/settings.json').read_text())['finished'] and len(pd.read_csv(tmp_path/'enc/history.csv')) == 2


def test_a_finished_classifier_answers_for_itself_alone(typed, photos, encoder, tmp_path):
    "Another encoder under the same path, other images with as many classes, another augmentation: refused, and weights and settings stay"
    enc, data = shutil.copytree(encoder, tmp_path/'enc'), shutil.copytree(photos, tmp_path/'data')
    args = ['gmml_finetune', 'data', 'enc', '--out', 'cls', '--epochs', 1, '--bs', 10, '--augment', 'none']
    assert typed(*args)[0] == 0
    before = files(tmp_path/'cls')
    def refused(*words, more=()):
        code, out, err = typed(*args, *more)
        assert code == 2 and all(o in err for o in words) and 'another --out' in err and files(tmp_path/'cls') == before, err
    refused('augmentation was', more=['--augment', 'light'])
    refused('smoothing was 0.1 and is 0.2', more=['--change', 'smoothing=.2'])
    w = load_file(enc/'model.safetensors')
    save_file({**w, 'norm.bias': w['norm.bias'] + 1}, enc/'model.safetensors')
    refused('start_weights was')
    shutil.copy(encoder/'model.safetensors', enc/'model.safetensors')
    (data/'a').rename(data/'d')
    refused("vocab was ['a', 'b', 'c'] and is ['b', 'c', 'd']")
    (data/'d').rename(data/'a')
    f = next((data/'a').iterdir())
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f)
    refused('images was')
    shutil.copy(photos/'a'/f.name, f)
    code, out, err = typed(*args)
    assert code == 0 and 'cls is finished' in out and re.search(r'^validation \(\d+ images\): top-1', out, flags=re.M) and files(tmp_path/'cls') == before
    shutil.rmtree(tmp_path/'cls/checkpoint')   # weights of which nothing tells what they are of
    code, out, err = typed(*args)
    assert code == 2 and 'cls holds a model' in err


def test_where_the_images_are(typed, photos, tmp_path, monkeypatch):
    "The commands' own folders are no images and no class; and they are not written among images"
    data = shutil.copytree(photos, tmp_path/'data')
    monkeypatch.chdir(data)
    pre = ['gmml_pretrain', '.', '--in-chans', 1, '--epochs', 1, '--bs', 16, *TINY]
    assert [typed(*pre)[0], typed(*pre)[0]] == [0, 0]
    code, out, err = typed('gmml_finetune', '.', 'gmml_encoder', '--epochs', 1, '--bs', 10, '--augment', 'none')
    assert code == 0 and json.loads(Path('gmml_classifier/settings.json').read_text())['vocab'] == ['a', 'b', 'c'], err
    for out in ('.', 'a', 'a/00.png', 'gmml_encoder'):
        code, _, err = typed('gmml_finetune', '.', 'gmml_encoder', '--out', out)
        assert code == 2 and 'another --out' in err, err
    assert not Path('settings.json').exists() and not Path('a/settings.json').exists()


def test_measured_alike_on_two_processes(photos, encoder, tmp_path):
    "13 held-out images, which two processes cannot share evenly: each is measured once, by the classifier that is written"
    args = dict(epochs=1, bs=8, augment='none', valid_pct=.27, device='cpu')
    assert [exit_code(p) for p in ranks(lambda: gmml_finetune(photos, encoder, out=tmp_path/'cls', **args))] == [0, 0]
    o = json.loads((tmp_path/'cls/settings.json').read_text())
    assert o['results']['validation']['images'] == 13 and (tmp_path/'cls/confusion.png').exists()
    model = timm.create_model(f'local-dir:{tmp_path/"cls"}', pretrained=True).eval()
    stats = [json.loads((encoder/'config.json').read_text())['pretrained_cfg'][k] for k in ('mean', 'std')]
    dls = finetune_dls(photos, 8, 8, None, valid_pct=.27, in_chans=1, stats=stats, device='cpu')
    with torch.no_grad(): right = torch.cat([model(x).argmax(1) == y for x,y in dls.valid])
    assert len(right) == 13 and abs(right.double().mean().item() - o['results']['validation']['top_1']) < 1e-6


def test_same_settings_same_weights(encoder, tmp_path):
    gmml_pretrain(settings=encoder, out=tmp_path/'again')
    a, b = (timm.create_model(f'local-dir:{p}', pretrained=True).state_dict() for p in (encoder, tmp_path/'again'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_finetune(typed, photos, encoder, tmp_path):
    args = ['gmml_finetune', photos, f'local-dir:{encoder}', '--out', 'cls', '--labels', 30, '--epochs', 5, '--bs', 10, '--lr', .1,
            '--augment', 'none', '--change', 'mixup=0 cutmix=0', '--valid-pct', .25]
    code, out, err = typed(*args)
    assert code == 0, err
    top = re.search(r'^validation \(12 images\): top-1 ([\d.]+) %', out, flags=re.M)
    assert top and 'random weights' not in out and 'test (' not in out
    o = json.loads((tmp_path/'cls/settings.json').read_text())
    assert o['vocab'] == ['a', 'b', 'c'] and abs(100*o['results']['validation']['top_1'] - float(top[1])) < .051
    assert o['recipe']['mixup'] == 0 and len(pd.read_csv(tmp_path/'cls/history.csv')) == 5
    assert Image.open(tmp_path/'cls/confusion.png').size[0] > 100

    model = timm.create_model(f'local-dir:{tmp_path/"cls"}', pretrained=True).eval()   # timm alone gets the same answers
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[k]).view(-1, 1, 1) for k in ('mean', 'std'))
    assert cfg['label_names'] == ['a', 'b', 'c'] and cfg['input_size'] == (1, 8, 8)
    pre = json.loads((encoder/'config.json').read_text())['pretrained_cfg']
    assert list(cfg['mean']) == pre['mean'] and list(cfg['std']) == pre['std']
    x = torch.stack([torch.from_numpy(np.array(Image.open(f)))[None]/255 for f in sorted(photos.rglob('*.png'))])
    assert cfg['crop_pct'] == 1   # no crop in training, none afterwards
    learn = gmml_finetune(settings=tmp_path/'cls', out=tmp_path/'again')   # and the same settings give the same classifier
    with torch.no_grad(): assert torch.allclose(model((x - mean)/std), learn.model.eval()((x - mean)/std), atol=1e-5)


@pytest.mark.parametrize('held_out', [.2, 0])
def test_finetune_measures_the_test_split_and_top_5(typed, tmp_path, held_out):
    code, out, err = typed('gmml_finetune', 'digits', '--out', 'cls', '--labels', 40, '--epochs', 1, '--bs', 20, '--augment', 'none', '--in-chans', 1,
                           '--valid-pct', held_out, *TINY)
    assert code == 0, err
    assert ('validation (' in out) == bool(held_out) and (tmp_path/'cls/confusion.png').exists()
    assert 'random weights' in out and re.search(r'^test \(360 images\): top-1 [\d.]+ %, top-5 [\d.]+ %$', out, flags=re.M)
    assert len(json.loads((tmp_path/'cls/settings.json').read_text())['vocab']) == 10


@pytest.fixture
def bad(tmp_path, photos):
    "Folders that are no good"
    (tmp_path/'empty').mkdir()
    d = tmp_path/'broken'
    d.mkdir()
    for f in list(photos.rglob('*.png'))[:4]: (d/f.name).write_bytes(f.read_bytes())
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(d/'whole.jpg')
    (d/'half.jpg').write_bytes((d/'whole.jpg').read_bytes()[:700])
    (d/'text.jpg').write_text('not an image\n')
    (d/'zero.png').write_bytes(b'')
    return tmp_path


def out_of(name, typed, *args):
    "The one line of a refusal, in under five seconds of work; nothing is written"
    t = time.process_time()
    code, out, err = typed(name, *args, '--out', 'never')
    assert time.process_time() - t < 5 and code == 2, (code, out, err)
    assert 'Traceback' not in err and not Path('never').exists()
    assert err.startswith('error: ') or ': error: ' in err, err
    return err


@pytest.mark.parametrize('args, words', [
    ('', 'DATA is missing'), ('empty', 'no images'), ('nowhere/', 'no such folder'), ('digitz', "Did you mean 'digits'"),
    ('PHOTOS --recipe papr', "Did you mean 'paper'"), ('PHOTOS --size 9', 'not a multiple of the patch'), ('PHOTOS --blocks 1,3', '2 blocks'),
    ('PHOTOS --blocks one', 'whole numbers'), ('PHOTOS --change noise=1.5', '1.5'), ('PHOTOS --change crop', 'name=value'),
    ('PHOTOS --change flipp=0', "Did you mean 'flip'"), ('PHOTOS --change alien=noize', "Did you mean 'noise'"), ('PHOTOS --arch resnet50', 'plain transformer'),
    ('PHOTOS --arch vit_tinny_patch16_224', 'vit_tiny_patch16_224'), ('PHOTOS --num-heads 5', 'num_heads=5 does not divide'), ('PHOTOS --epochs 0', 'epochs=0'),
    ('PHOTOS --valid-pct 1', 'valid_pct=1'), ('PHOTOS --bs 0', 'bs=0'), ('PHOTOS --device cuda:99', 'cuda:99'), ('PHOTOS --settings none.json', 'none.json'),
    ('PHOTOS --on-error skpi', 'skpi'), ('PHOTOS --epochs many', 'invalid int value'), ('PHOTOS --root x', 'folder of a dataset'),
    ('PHOTOS --lr -1', 'lr=-1'), ('PHOTOS --workers -1', 'workers=-1'), ('PHOTOS --depth 0', 'depth=0'), ('PHOTOS --save-minutes 0', 'minutes=0'), ('PHOTOS --change crop=50,100', 'crop='),
    ('PHOTOS --resize stretch', 'squish'), ('PHOTOS more', 'a word too many'), ('PHOTOS --learning-rate .1', "Did you mean '--lr'"), ('PHOTOS --batch-size 8', "Did you mean '--bs'"),
    ('PHOTOS --patch_sise 8', "Did you mean '--patch-size'"), ('PHOTOS --mask-ratio .75', 'noise='), ('PHOTOS --flip 0', '--change "flip=..."'), ('PHOTOS --resume', 'goes on')])
def test_pretrain_mistakes(typed, bad, photos, args, words):
    err = out_of('gmml_pretrain', typed, *args.replace('PHOTOS', str(photos)).split()[:1], *TINY, *args.split()[1:])
    assert words in err


def test_broken_images_are_all_named(typed, bad):
    err = out_of('gmml_pretrain', typed, 'broken', *TINY)
    assert all(o in err for o in ('half.jpg', 'text.jpg', 'zero.png', "on_error='skip'")) and 'whole.jpg' not in err


@pytest.mark.parametrize('args, words', [
    ('--encoder nowhere/enc', 'no such folder here'), ('nowhere', 'no such folder here'), ('ENC --embed-dim 48', 'match'), ('ENC --mixup 0', '--change "mixup=..."'), ('ENC --lr 0', 'lr=0'),
    ('ENC --change layer_decay=2', 'layer_decay=2'), ('--encoder ENC --labels 2', 'labels=2'),
    ('--encoder ENC --augment diet', "Did you mean 'deit'"), ('--encoder ENC --in-chans 3', 'channels'), ('--encoder ENC --change mixupp=0', "Did you mean 'mixup'"),
    ('--encoder ENC --change pool=both', 'take pool=avg'), ('--encoder ENC --pool avg', '--change "pool=..."'), ('--encoder ENC --freeze 5', 'freeze=5'), ('--encoder EMPTY', 'config.json'), ('--encoder ENC --size 9', 'not a multiple of the patch')])
def test_finetune_mistakes(typed, bad, photos, encoder, args, words):
    args = args.replace('ENC', str(encoder)).replace('EMPTY', str(bad/'empty'))
    assert words in out_of('gmml_finetune', typed, photos, *args.split())


def test_unlabelled_images(typed, bad, photos):
    assert 'not in a folder named after their class' in out_of('gmml_finetune', typed, photos/'a')


def test_home_folder(typed, photos, tmp_path, monkeypatch):
    "`~` in every option that is a path"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    shutil.copytree(photos, tmp_path/'home/photos')
    code, out, err = typed('gmml_pretrain', '~/photos', '--out=~/enc', '--checkpoint=~/ck', '--in-chans', 1, '--epochs', 1, '--bs', 16, *TINY)
    assert code == 0, err
    assert (tmp_path/'home/enc/config.json').exists() and (tmp_path/'home/ck/finished').exists() and not (tmp_path/'~').exists()
    code, out, err = typed('gmml_finetune', '--settings=~/enc')
    assert 'is of gmml_pretrain' in err and 'home/enc' in err


def test_a_name_that_is_both(typed, tmp_path, photos):
    "A data set, and a folder here"
    shutil.copytree(photos, tmp_path/'digits')
    for name in ('gmml_pretrain', 'gmml_finetune', 'gmml_demo'):
        code, out, err = typed(name, 'digits', *TINY)
        assert code == 2 and './digits' in err, err


def test_sweep_mistakes(typed, bad, photos):
    for args, words in (('', 'SWEEP is missing'), ('corrupton', "Did you mean 'corruption'"), ('methods --base flower', "Did you mean 'flowers'"),
                        ('methods --change epoch=3', "Did you mean 'epochs'"), ('methods --draws 0', 'draws=0: give a whole number, 1 or more'), (f'methods --data {photos} --out {photos}', 'is the folder of the images')):
        code, out, err = typed('gmml_sweep', *args.split())
        assert code == 2 and words in err and not Path('runs').exists(), err
    assert "Did you mean 'memory'" in typed('gmml_bench', 'step,memroy')[2]


def test_sweep_draws(typed):
    "Priced with one pretraining for all draws, and kept in the settings"
    small = ('loss', '--seeds', 1, '--draws', 2, '--change', "images=40 labels=20 epochs=1 bs=16 finetune_epochs=1 model_args={'embed_dim':24,'depth':2,'num_heads':2} blocks=1,2")
    code, out, err = typed('gmml_sweep', *small, '--dry-run')
    assert code == 0 and [l.split()[:5] for l in out.splitlines() if l.split()[:1] in (['l1'], ['l2'])] == [
        ['l1', '0', '0', '52', '4'], ['l2', '0', '0', '52', '4'], ['l1', '0', '1', '20', '2'], ['l2', '0', '1', '20', '2']], (out, err)
    code, out, err = typed('gmml_sweep', *small)
    assert code == 0 and 'over 2 draws of labels, one pretraining' in out, err
    assert json.loads(Path('runs/settings.json').read_text())['options']['draws'] == 2


def test_settings_of_another_command(typed, encoder, tmp_path):
    assert 'is of gmml_pretrain' in out_of('gmml_finetune', typed, '--settings', encoder)
    (tmp_path/'s.json').write_text(json.dumps(dict(command='gmml_pretrain', options=dict(epoch=3))))
    assert "Did you mean 'epochs'" in out_of('gmml_pretrain', typed, '--settings', 's.json')
    (tmp_path/'s.json').write_text('{')
    assert 'not JSON' in out_of('gmml_pretrain', typed, '--settings', 's.json')


def test_python_call_raises(photos):
    with pytest.raises(ValueError, match='Did you mean'): gmml_pretrain('digitz', size=8, patch_size=2)
